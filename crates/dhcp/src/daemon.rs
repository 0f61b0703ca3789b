//! The daemon: one thread that waits for requests, packets from servers, and timers.

mod clock;
mod holder;
mod listen;

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use kernel::{IpFamily, link::Link};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use self::{
    clock::{boottime, random},
    holder::Holder,
    listen::listen,
};
use crate::{
    call::{self, Answer, Call, Owner},
    interface,
    lease::{Output, Patience, Time},
    store::{self, Store, Stored},
    v4, v6,
};

/// The daemon's options, as its flags set them.
#[derive(Debug, Clone)]
pub struct Options {
    /// The path of the socket, below the prefix.
    pub socket: PathBuf,
    /// The file for the daemon's process ID.
    pub pidfile: Option<PathBuf>,
    /// The prefix of paths of the host, for a daemon in a container of its own.
    pub host_prefix: PathBuf,
    /// The time limit of the first wait for an answer.
    pub timeout: Duration,
    /// The longest interval between attempts.
    pub resend_max: Duration,
    /// The time limit of an ADD.
    pub resend_timeout: Duration,
    /// Whether servers are asked to answer by broadcast.
    pub broadcast: bool,
}

/// Runs the daemon until SIGTERM or SIGINT. Leases are kept for the next daemon.
///
/// # Errors
/// If it cannot listen, or write its files.
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

/// Removes the file of a lease while no daemon runs, so that the next daemon does not keep it. The server reclaims the lease when it
/// expires.
///
/// # Errors
/// If its file cannot be removed.
pub fn forget(socket: &Path, owner: &Owner) -> io::Result<()> {
    store::forget(socket, owner)
}

const DELETED: &str = "it was deleted meanwhile";

struct Daemon<'a> {
    options: Options,
    store: Store,
    holders: Vec<Holder>,
    log: &'a mut dyn FnMut(&str),
}

impl Daemon<'_> {
    /// Restores the leases of the previous daemon.
    fn restore(&mut self) -> io::Result<()> {
        for stored in self.store.read()? {
            let name = &stored.owner;
            let found = interface::within(&stored.netns, Some(stored.identity), || {
                interface::ready(&stored.owner.ifname)
            });
            match found {
                Ok(link) => {
                    (self.log)(&format!("{name}: lease kept"));
                    self.holders.push(self.holder_of(stored, link));
                }
                Err(error) => {
                    (self.log)(&format!("{name}: lease forgotten: {error}"));
                    self.store.remove(&stored.owner)?;
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
            ..Holder::new(stored.owner, stored.netns, stored.identity, link)
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
                for (family, exchange) in
                    [(IpFamily::V4, &holder.exchange4), (IpFamily::V6, &holder.exchange6)]
                {
                    if let Some(exchange) = exchange {
                        fds.push(PollFd::from_borrowed_fd(exchange.as_fd(), PollFlags::IN));
                        whose.push((index, family));
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
            for ((index, family), _) in whose.iter().zip(&ready[2..]).filter(|(_, ready)| **ready) {
                self.hear(*index, *family);
            }
            if ready[1] {
                while let Ok((stream, _)) = listener.accept() {
                    self.answer(stream);
                }
            }
        }
    }

    /// Runs due timers of all interfaces and drops interfaces that are gone.
    fn tick(&mut self, now: Time) {
        for index in 0..self.holders.len() {
            let holder = &mut self.holders[index];
            let of_v4 = holder.v4.as_mut().map(|(client, _)| client.tick(now, random)).unwrap_or_default();
            self.carry_out(index, IpFamily::V4, of_v4);
            let holder = &mut self.holders[index];
            let of_v6 = holder.v6.as_mut().map(|(client, _)| client.tick(now, random)).unwrap_or_default();
            self.carry_out(index, IpFamily::V6, of_v6);
        }
        let limit = self.options.resend_timeout;
        let failed = format!("no DHCP server has given a lease within {} s", limit.as_secs());
        self.release(&failed, |holder| holder.waiting.as_ref().is_some_and(|(_, until)| *until <= now));
        let gone = "its namespace or interface is gone";
        self.release(gone, |holder| holder.gone);
    }

    fn forget(&mut self, owner: &Owner) {
        if let Err(error) = self.store.remove(owner) {
            (self.log)(&format!("{owner}: cannot forget the lease: {error}"));
        }
    }

    /// Reads pending packets of one interface.
    fn hear(&mut self, index: usize, family: IpFamily) {
        loop {
            let holder = &mut self.holders[index];
            let exchange = if family == IpFamily::V4 { &holder.exchange4 } else { &holder.exchange6 };
            let Some(exchange) = exchange else { return };
            match exchange.receive() {
                Ok(None) => return,
                Ok(Some(packet)) => {
                    let now = boottime();
                    let outputs = if family == IpFamily::V4 {
                        holder.v4.as_mut().map(|(client, _)| client.receive(now, &packet, random))
                    } else {
                        holder.v6.as_mut().map(|(client, _)| client.receive(now, &packet, random))
                    };
                    self.carry_out(index, family, outputs.unwrap_or_default());
                }
                Err(error) => {
                    // The link is down or gone. The next attempt detects it.
                    (self.log)(&format!("{}: {error}", holder.owner));
                    let exchange =
                        if family == IpFamily::V4 { &mut holder.exchange4 } else { &mut holder.exchange6 };
                    *exchange = None;
                    return;
                }
            }
        }
    }

    /// Carries out the outputs of a client.
    fn carry_out(&mut self, index: usize, family: IpFamily, outputs: Vec<Output>) {
        for output in outputs {
            let holder = &mut self.holders[index];
            let name = holder.owner.to_string();
            let outcome = match output {
                Output::Broadcast(_) | Output::Unicast { .. } | Output::Multicast(_) => {
                    holder.send(family, &output)
                }
                Output::Lost(why) => {
                    (self.log)(&format!("{name}: lease lost: {why}"));
                    holder.lose(family)
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
        self.holders[index].close(family);
        self.holders[index].reply();
    }

    /// Reads a request and answers it, at once or, for new leases, later.
    fn answer(&mut self, mut stream: UnixStream) {
        const PATIENCE: Duration = Duration::from_secs(2);
        drop(stream.set_nonblocking(false));
        drop(stream.set_read_timeout(Some(PATIENCE)));
        drop(stream.set_write_timeout(Some(PATIENCE)));
        let answer = match call::read::<Call>(&stream) {
            Err(error) => Answer::Failed(format!("the call was not understood: {error}")),
            Ok(Call::Ping) => Answer::Done,
            Ok(Call::Release(owner)) => {
                self.release(DELETED, |holder| holder.owner == owner);
                Answer::Done
            }
            Ok(Call::Collect { network, valid }) => {
                let is_valid = |owner: &Owner| {
                    valid
                        .iter()
                        .any(|(container, ifname)| *container == owner.container && *ifname == owner.ifname)
                };
                self.release(DELETED, |holder| holder.owner.network == network && !is_valid(&holder.owner));
                Answer::Done
            }
            Ok(Call::Check(owner)) => {
                match self.holders.iter().find(|it| it.owner == owner).and_then(Holder::leases) {
                    Some(leases) => Answer::Leases(leases),
                    None => Answer::Failed(format!("{owner} has no lease")),
                }
            }
            Ok(Call::Acquire { owner, netns, v4, v6, priority }) => {
                let there = self.holders.iter().find(|it| it.owner == owner).and_then(Holder::leases);
                match there {
                    Some(leases) => Answer::Leases(leases),
                    None => match self.acquire(owner, &netns, v4, v6, priority) {
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
        // The caller may be gone.
        drop(call::write(&mut stream, &answer));
    }

    fn acquire(
        &mut self,
        owner: Owner,
        netns: &Path,
        v4: Option<v4::Wishes>,
        v6: Option<v6::Wishes>,
        priority: u32,
    ) -> kernel::Result<Holder> {
        // Another request still waits for this one.
        self.release("another call asks for the same", |holder| holder.owner == owner);
        let netns = prefixed(&self.options.host_prefix, netns);
        let identity = kernel::Netns::open(&netns)?.identity()?;
        let link = interface::within(&netns, None, || interface::ready(&owner.ifname))?;
        (self.log)(&format!("{owner}: acquiring lease"));
        let (now, patience, mac) = (boottime(), self.patience(), mac_of(&link));
        let v4 = v4.map(|wishes| v4::Wishes { broadcast: self.options.broadcast, ..wishes });
        Ok(Holder {
            v4: v4.map(|wishes| (v4::Client::new(mac, wishes.clone(), patience, now), wishes)),
            v6: v6.map(|wishes| (v6::Client::new(wishes.clone(), patience, now), wishes)),
            priority,
            ..Holder::new(owner, netns, identity, link)
        })
    }

    /// Releases and removes the leases of the selected owners. A request that still waits for one gets the reason.
    fn release(&mut self, why: &str, which: impl Fn(&Holder) -> bool) {
        let (released, kept) = std::mem::take(&mut self.holders).into_iter().partition(which);
        self.holders = kept;
        let released: Vec<Holder> = released;
        for mut holder in released {
            let now = boottime();
            let of_v4 = holder.v4.as_mut().and_then(|(client, _)| client.release(now, random()));
            let of_v6 = holder.v6.as_mut().and_then(|(client, _)| client.release(now, random()));
            for (family, output) in [(IpFamily::V4, of_v4), (IpFamily::V6, of_v6)] {
                if let Some(output) = output.filter(|_| !holder.gone) {
                    (self.log)(&format!("{}: releasing lease", holder.owner));
                    // A server that misses the message reclaims the lease when it expires.
                    if let Err(error) = holder.send(family, &output) {
                        (self.log)(&format!("{}: {error}", holder.owner));
                    }
                }
            }
            if let Some((mut stream, _)) = holder.waiting.take() {
                drop(call::write(&mut stream, &Answer::Failed(why.to_owned())));
            }
            self.forget(&holder.owner);
        }
    }
}

fn prefixed(prefix: &Path, path: &Path) -> PathBuf {
    prefix.join(path.strip_prefix("/").unwrap_or(path))
}

fn mac_of(link: &Link) -> [u8; 6] {
    link.mac.map_or([0; 6], |mac| mac.0)
}
