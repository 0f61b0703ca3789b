//! The daemon: one thread that waits for calls, answers of servers, and the next time that something is due.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use kernel::link::Link;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::Mode,
    io::Errno,
    rand::{GetRandomFlags, getrandom},
    time::{ClockId, clock_gettime},
};

use crate::{
    call::{self, Answer, Call, Who},
    exchange::Exchange,
    interface,
    lease::{Lease, Output, Patience, Time},
    store::{self, Store, Stored},
    v4, v6,
};

/// Says how the daemon is to run, as its flags do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens, below the prefix.
    pub socket: PathBuf,
    /// Where it writes its process ID.
    pub pidfile: Option<PathBuf>,
    /// What stands before paths of the host, for a daemon in a container of its own.
    pub host_prefix: PathBuf,
    /// The longest wait for an answer at first.
    pub timeout: Duration,
    /// The longest wait between tries.
    pub resend_max: Duration,
    /// How long an ADD may take.
    pub resend_timeout: Duration,
    /// Servers are to answer to everybody.
    pub broadcast: bool,
}

/// Runs until SIGTERM or SIGINT. Leases stay, for the next daemon.
///
/// # Errors
/// When it cannot listen, or write its files.
pub fn run(options: &Options, log: &mut dyn FnMut(&str)) -> io::Result<()> {
    if let Some(pidfile) = &options.pidfile {
        if !pidfile.is_absolute() {
            return Err(io::Error::other(format!("pidfile {}: the path is not absolute", pidfile.display())));
        }
        fs::write(pidfile, std::process::id().to_string())?;
    }
    let socket = prefixed(&options.host_prefix, &options.socket);
    let (listener, is_ours) = listen(&socket)?;
    listener.set_nonblocking(true)?;
    let (stop, stopped) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, stopped.try_clone()?)?;
    }
    let mut daemon =
        Daemon { options: options.clone(), store: Store::of_socket(&socket)?, holders: Vec::new(), log };
    daemon.restore()?;
    let outcome = daemon.serve(&listener, &stop);
    if is_ours {
        drop(fs::remove_file(&socket));
    }
    if let Some(pidfile) = &options.pidfile {
        drop(fs::remove_file(pidfile));
    }
    outcome
}

/// Forgets a lease while no daemon runs, so that the next one does not keep it; the server takes it back when it is
/// over.
///
/// # Errors
/// When its file cannot be removed.
pub fn forget(socket: &Path, who: &Who) -> io::Result<()> {
    store::forget(socket, who)
}

const DELETED: &str = "it was deleted meanwhile";

struct Daemon<'a> {
    options: Options,
    store: Store,
    holders: Vec<Holder>,
    log: &'a mut dyn FnMut(&str),
}

/// An interface with its leases.
struct Holder {
    who: Who,
    netns: PathBuf,
    identity: (u64, u64),
    link: Link,
    priority: u32,
    v4: Option<(v4::Client, v4::Wishes)>,
    v6: Option<(v6::Client, v6::Wishes)>,
    exchange4: Option<Exchange>,
    exchange6: Option<Exchange>,
    /// The leases whose addresses the interface has.
    given: Vec<Lease>,
    /// Who waits for the first leases, and until when.
    waiting: Option<(UnixStream, Time)>,
    /// Its namespace or link is gone.
    gone: bool,
}

impl Daemon<'_> {
    /// Takes up the leases that a daemon before this one kept.
    fn restore(&mut self) -> io::Result<()> {
        for stored in self.store.read()? {
            let name = name_of(&stored.who);
            let found = interface::within(&stored.netns, Some(stored.identity), || {
                interface::ready(&stored.who.ifname)
            });
            match found {
                Ok(link) => {
                    (self.log)(&format!("{name}: lease kept"));
                    self.holders.push(self.holder_of(stored, link));
                }
                Err(error) => {
                    (self.log)(&format!("{name}: lease forgotten: {error}"));
                    self.store.remove(&stored.who)?;
                }
            }
        }
        Ok(())
    }

    fn holder_of(&self, stored: Stored, link: Link) -> Holder {
        let (patience, mac) = (self.patience(), mac_of(&link));
        let of_v4 = stored.v4.as_ref().map(|(_, lease)| lease.clone());
        let of_v6 = stored.v6.as_ref().map(|(_, lease)| lease.clone());
        Holder {
            given: of_v4.into_iter().chain(of_v6).collect(),
            v4: stored.v4.map(|(wishes, lease)| {
                (v4::Client::with_lease(mac, wishes.clone(), patience, lease), wishes)
            }),
            v6: stored
                .v6
                .map(|(wishes, lease)| (v6::Client::with_lease(wishes.clone(), patience, lease), wishes)),
            priority: stored.priority,
            ..Holder::new(stored.who, stored.netns, stored.identity, link)
        }
    }

    fn patience(&self) -> Patience {
        Patience { answer: self.options.timeout, most: self.options.resend_max }
    }

    fn serve(&mut self, listener: &UnixListener, stop: &UnixStream) -> io::Result<()> {
        loop {
            let now = boottime();
            self.tick(now);
            let next = self.holders.iter().filter_map(Holder::due).min();
            let wait = next.map(|due| due.saturating_sub(boottime()));
            let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
            let mut fds = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
            let mut whose = Vec::new();
            for (index, holder) in self.holders.iter().enumerate() {
                for (v4, exchange) in [(true, &holder.exchange4), (false, &holder.exchange6)] {
                    if let Some(exchange) = exchange {
                        fds.push(PollFd::from_borrowed_fd(exchange.as_fd(), PollFlags::IN));
                        whose.push((index, v4));
                    }
                }
            }
            match poll(&mut fds, wait.as_ref()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                return Ok(());
            }
            for ((index, v4), _) in whose.iter().zip(&ready[2..]).filter(|(_, ready)| **ready) {
                self.hear(*index, *v4);
            }
            if ready[1] {
                while let Ok((stream, _)) = listener.accept() {
                    self.answer(stream);
                }
            }
        }
    }

    /// Does what is due, of all, and forgets those that are gone.
    fn tick(&mut self, now: Time) {
        for index in 0..self.holders.len() {
            let holder = &mut self.holders[index];
            let of_v4 = holder.v4.as_mut().map(|(client, _)| client.tick(now, random)).unwrap_or_default();
            self.carry_out(index, true, of_v4);
            let holder = &mut self.holders[index];
            let of_v6 = holder.v6.as_mut().map(|(client, _)| client.tick(now, random)).unwrap_or_default();
            self.carry_out(index, false, of_v6);
        }
        let limit = self.options.resend_timeout;
        let failed = format!("no DHCP server has given a lease within {} s", limit.as_secs());
        self.release(&failed, |holder| holder.waiting.as_ref().is_some_and(|(_, until)| *until <= now));
        let gone = "its namespace or interface is gone";
        self.release(gone, |holder| holder.gone);
    }

    fn forget(&mut self, who: &Who) {
        if let Err(error) = self.store.remove(who) {
            (self.log)(&format!("{}: cannot forget the lease: {error}", name_of(who)));
        }
    }

    /// Reads what has come for one interface.
    fn hear(&mut self, index: usize, v4: bool) {
        loop {
            let holder = &mut self.holders[index];
            let exchange = if v4 { &holder.exchange4 } else { &holder.exchange6 };
            let Some(exchange) = exchange else { return };
            match exchange.receive() {
                Ok(None) => return,
                Ok(Some(packet)) => {
                    let now = boottime();
                    let outputs = if v4 {
                        holder.v4.as_mut().map(|(client, _)| client.receive(now, &packet, random))
                    } else {
                        holder.v6.as_mut().map(|(client, _)| client.receive(now, &packet, random))
                    };
                    self.carry_out(index, v4, outputs.unwrap_or_default());
                }
                Err(error) => {
                    // The link went down or away; the next try finds out.
                    (self.log)(&format!("{}: {error}", name_of(&holder.who)));
                    let exchange = if v4 { &mut holder.exchange4 } else { &mut holder.exchange6 };
                    *exchange = None;
                    return;
                }
            }
        }
    }

    /// Does what a client wants done.
    fn carry_out(&mut self, index: usize, v4: bool, outputs: Vec<Output>) {
        for output in outputs {
            let holder = &mut self.holders[index];
            let name = name_of(&holder.who);
            let outcome = match output {
                Output::Broadcast(_) | Output::Unicast { .. } | Output::Multicast(_) => {
                    holder.send(v4, &output)
                }
                Output::Lost(why) => {
                    (self.log)(&format!("{name}: lease lost: {why}"));
                    holder.lose(v4)
                }
                Output::Bound(lease) => {
                    let left = lease.expire.saturating_sub(boottime()).as_secs_f32();
                    (self.log)(&format!("{name}: lease of {} for {left:.0} s", lease.address));
                    let outcome = holder.keep(&lease);
                    if let Err(error) = self.store.write(&holder.stored()) {
                        (self.log)(&format!("{name}: cannot remember the lease: {error}"));
                    }
                    outcome
                }
            };
            if let Err(error) = outcome {
                (self.log)(&format!("{name}: {error}"));
                if kernel::netns::is_gone(&error) {
                    self.holders[index].gone = true;
                }
            }
        }
        self.holders[index].close(v4);
        self.holders[index].reply();
    }

    /// Reads a call and answers it, at once or (for new leases) later.
    fn answer(&mut self, mut stream: UnixStream) {
        const PATIENCE: Duration = Duration::from_secs(2);
        drop(stream.set_nonblocking(false));
        drop(stream.set_read_timeout(Some(PATIENCE)));
        drop(stream.set_write_timeout(Some(PATIENCE)));
        let answer = match call::read::<Call>(&stream) {
            Err(error) => Answer::Failed(format!("the call was not understood: {error}")),
            Ok(Call::Ping) => Answer::Done,
            Ok(Call::Release(who)) => {
                self.release(DELETED, |holder| holder.who == who);
                Answer::Done
            }
            Ok(Call::Collect { network, valid }) => {
                let is_valid = |who: &Who| {
                    valid
                        .iter()
                        .any(|(container, ifname)| *container == who.container && *ifname == who.ifname)
                };
                self.release(DELETED, |holder| holder.who.network == network && !is_valid(&holder.who));
                Answer::Done
            }
            Ok(Call::Check(who)) => {
                match self.holders.iter().find(|it| it.who == who).and_then(Holder::leases) {
                    Some(leases) => Answer::Leases(leases),
                    None => Answer::Failed(format!("{} has no lease", name_of(&who))),
                }
            }
            Ok(Call::Acquire { who, netns, v4, v6, priority }) => {
                let there = self.holders.iter().find(|it| it.who == who).and_then(Holder::leases);
                match there {
                    Some(leases) => Answer::Leases(leases),
                    None => match self.acquire(who, &netns, v4, v6, priority) {
                        Ok(holder) => {
                            let until = boottime() + self.options.resend_timeout;
                            self.holders.push(Holder { waiting: Some((stream, until)), ..holder });
                            return;
                        }
                        Err(error) => Answer::Failed(error.to_string()),
                    },
                }
            }
        };
        // Whoever asked may be gone.
        drop(call::write(&mut stream, &answer));
    }

    fn acquire(
        &mut self,
        who: Who,
        netns: &Path,
        v4: Option<v4::Wishes>,
        v6: Option<v6::Wishes>,
        priority: u32,
    ) -> kernel::Result<Holder> {
        // One that another call still waits for.
        self.release("another call asks for the same", |holder| holder.who == who);
        let netns = prefixed(&self.options.host_prefix, netns);
        let identity = kernel::Netns::open(&netns)?.identity()?;
        let link = interface::within(&netns, None, || interface::ready(&who.ifname))?;
        (self.log)(&format!("{}: acquiring lease", name_of(&who)));
        let (now, patience, mac) = (boottime(), self.patience(), mac_of(&link));
        let v4 = v4.map(|wishes| v4::Wishes { broadcast: self.options.broadcast, ..wishes });
        Ok(Holder {
            v4: v4.map(|wishes| (v4::Client::new(mac, wishes.clone(), patience, now), wishes)),
            v6: v6.map(|wishes| (v6::Client::new(wishes.clone(), patience, now), wishes)),
            priority,
            ..Holder::new(who, netns, identity, link)
        })
    }

    /// Releases and forgets the leases of some; whoever still waits for one is told why.
    fn release(&mut self, why: &str, which: impl Fn(&Holder) -> bool) {
        let (released, kept) = std::mem::take(&mut self.holders).into_iter().partition(which);
        self.holders = kept;
        let released: Vec<Holder> = released;
        for mut holder in released {
            let now = boottime();
            let of_v4 = holder.v4.as_mut().and_then(|(client, _)| client.release(now, random()));
            let of_v6 = holder.v6.as_mut().and_then(|(client, _)| client.release(now, random()));
            for (v4, output) in [(true, of_v4), (false, of_v6)] {
                if let Some(output) = output.filter(|_| !holder.gone) {
                    (self.log)(&format!("{}: releasing lease", name_of(&holder.who)));
                    // A server that does not hear it takes the lease back when it is over.
                    if let Err(error) = holder.send(v4, &output) {
                        (self.log)(&format!("{}: {error}", name_of(&holder.who)));
                    }
                }
            }
            if let Some((mut stream, _)) = holder.waiting.take() {
                drop(call::write(&mut stream, &Answer::Failed(why.to_owned())));
            }
            self.forget(&holder.who);
        }
    }
}

impl Holder {
    fn new(who: Who, netns: PathBuf, identity: (u64, u64), link: Link) -> Self {
        Self {
            who,
            netns,
            identity,
            link,
            priority: 0,
            v4: None,
            v6: None,
            exchange4: None,
            exchange6: None,
            given: Vec::new(),
            waiting: None,
            gone: false,
        }
    }

    fn due(&self) -> Option<Time> {
        let of_clients = [
            self.v4.as_ref().map(|(client, _)| client.due()),
            self.v6.as_ref().map(|(client, _)| client.due()),
            self.waiting.as_ref().map(|(_, until)| *until),
        ];
        of_clients.into_iter().flatten().min()
    }

    /// Returns the leases, if all that were asked for are there.
    fn leases(&self) -> Option<Vec<Lease>> {
        let of_v4 = self.v4.as_ref().map(|(client, _)| client.lease());
        let of_v6 = self.v6.as_ref().map(|(client, _)| client.lease());
        [of_v4, of_v6].into_iter().flatten().map(Option::<&Lease>::cloned).collect()
    }

    fn stored(&self) -> Stored {
        Stored {
            v4: self.v4.as_ref().and_then(|(client, wishes)| Some((wishes.clone(), client.lease()?.clone()))),
            v6: self.v6.as_ref().and_then(|(client, wishes)| Some((wishes.clone(), client.lease()?.clone()))),
            ..Stored::new(&self.who, &self.netns, self.identity, self.priority)
        }
    }

    /// Answers whoever waits, once all leases are there.
    fn reply(&mut self) {
        if let Some(leases) = self.leases()
            && let Some((mut stream, _)) = self.waiting.take()
        {
            drop(call::write(&mut stream, &Answer::Leases(leases)));
        }
    }

    /// Sends, by a socket that is opened if it is not there.
    fn send(&mut self, v4: bool, output: &Output) -> kernel::Result<()> {
        let (link, identity) = (&self.link, Some(self.identity));
        if v4 {
            let listening = match output {
                Output::Unicast { from, .. } => v4::Listening::ToAddress(*from),
                _ => v4::Listening::ToEverything,
            };
            if !self.exchange4.as_ref().is_some_and(|exchange| exchange.fits(listening)) {
                self.exchange4 = None;
                self.exchange4 = interface::within(&self.netns, identity, || {
                    interface::ready(&self.who.ifname)?;
                    Exchange::of_v4(link, listening)
                })?;
            }
        } else if self.exchange6.is_none() {
            self.exchange6 = interface::within(&self.netns, identity, || Exchange::of_v6(link))?;
            if self.exchange6.is_none()
                && let Some((client, _)) = &mut self.v6
            {
                const SOON: Duration = Duration::from_millis(100);
                client.postpone(boottime() + SOON);
                return Ok(());
            }
        }
        let exchange = if v4 { &self.exchange4 } else { &self.exchange6 };
        match (exchange, output) {
            (Some(exchange), Output::Broadcast(packet)) => exchange.broadcast(packet),
            (Some(exchange), Output::Unicast { packet, to, .. }) => exchange.unicast(packet, *to),
            (Some(exchange), Output::Multicast(packet)) => exchange.multicast(packet),
            _ => Ok(()),
        }
    }

    /// Takes the address of a lease that is over from the interface.
    fn lose(&mut self, v4: bool) -> kernel::Result<()> {
        let Some(lost) = self.no_longer_given(v4) else { return Ok(()) };
        interface::within(&self.netns, Some(self.identity), || {
            interface::take_away(&self.who.ifname, lost.address)
        })
    }

    /// Notes a lease. The interface gets the first one from the plugin, and another address, or one that was lost
    /// meanwhile, from here.
    fn keep(&mut self, lease: &Lease) -> kernel::Result<()> {
        let before = self.no_longer_given(lease.address.addr().is_ipv4());
        self.given.push(lease.clone());
        let is_as_before = before.as_ref().is_some_and(|before| before.address == lease.address);
        if self.waiting.is_some() || is_as_before {
            return Ok(());
        }
        interface::within(&self.netns, Some(self.identity), || {
            if let Some(before) = before {
                interface::take_away(&self.who.ifname, before.address)?;
            }
            interface::give(&self.who.ifname, lease, self.priority)
        })
    }

    fn no_longer_given(&mut self, v4: bool) -> Option<Lease> {
        let index = self.given.iter().position(|lease| lease.address.addr().is_ipv4() == v4)?;
        Some(self.given.swap_remove(index))
    }

    /// Closes a socket by which nothing is expected.
    fn close(&mut self, v4: bool) {
        if v4 {
            let listening = self.v4.as_ref().map_or(v4::Listening::No, |(client, _)| client.listening());
            self.exchange4.take_if(|exchange| !exchange.fits(listening));
        } else if !self.v6.as_ref().is_some_and(|(client, _)| client.is_listening()) {
            self.exchange6 = None;
        }
    }
}

/// Listens at the socket that systemd opened, or at a new one; tells whether it is a new one.
fn listen(socket: &Path) -> io::Result<(UnixListener, bool)> {
    let mut given = listenfd::ListenFd::from_env();
    match given.len() {
        0 => {}
        1 => {
            let listener = given.take_unix_listener(0)?;
            return listener
                .map(|it| (it, false))
                .ok_or_else(|| io::Error::other("LISTEN_FDS names no socket"));
        }
        more => return Err(io::Error::other(format!("{more} sockets were passed, where one is expected"))),
    }
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder)?;
    }
    // One that is left from a daemon that was killed answers nobody.
    match UnixStream::connect(socket) {
        Ok(_) => return Err(io::Error::other(format!("another daemon listens at {}", socket.display()))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(socket)?,
        Err(_) => {}
    }
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(before);
    listener.map(|listener| (listener, true)).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen at {}: {error}", socket.display()))
    })
}

fn prefixed(prefix: &Path, path: &Path) -> PathBuf {
    prefix.join(path.strip_prefix("/").unwrap_or(path))
}

fn name_of(who: &Who) -> String {
    format!("{}/{}/{}", who.container, who.network, who.ifname)
}

fn mac_of(link: &Link) -> [u8; 6] {
    link.mac.map_or([0; 6], |mac| mac.0)
}

fn boottime() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Early at boot there may be none; then time has to do.
    if getrandom(&mut bytes[..], GetRandomFlags::NONBLOCK).is_err() {
        return boottime().subsec_nanos();
    }
    u32::from_ne_bytes(bytes)
}
