//! Work without root: the refusal that says what to do, and the folders that are writable in a user namespace.
//!
//! The root of a user namespace configures network namespaces that it created, but owns no folder of the system. What would be
//! in `/var/lib/cni` and `/run/netns` is then in one folder for each network namespace: two commands in the same one share a
//! bridge, and therefore the reservations of addresses.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use kernel::{
    Kind, Netns, Protocol, Socket,
    link::{self, Change},
};
use netloom_invoke::FileId;
use netloom_runtime::types::NetworkList;
use rustix::{
    fs::{Access, Mode, OFlags, access},
    io::Errno,
};
use serde_json::Value;

use super::{Failure, Outcome, Places, note};

/// `linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// The state folder that other runtimes share.
const SYSTEM_STATE: &str = "/var/lib/cni";
const SYSTEM_NETNS: &str = "/run/netns";

/// Refuses a command that the kernel would refuse step by step, and says how to run it.
pub(crate) fn require_capabilities(command: &str) -> Outcome {
    let missing: Vec<&str> = [(CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_SYS_ADMIN, "CAP_SYS_ADMIN")]
        .into_iter()
        .filter(|(number, _)| !has_capability(*number))
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let namespace = match command {
        "add" => String::new(),
        _ => format!(", or `unshare -Urnm netloom {command} ...` for a network of your own without root"),
    };
    Err(Failure::new(format!("cannot configure networks: this process lacks {}", missing.join(" and ")))
        .hint(format!("run `sudo netloom {command} ...`{namespace}")))
}

/// Explains an error of a command that tries without capabilities, as a plugin may need none.
pub(crate) fn refused(command: &str, error: netloom_runtime::Error) -> Failure {
    let failure = Failure::from(error);
    match require_capabilities(command) {
        Ok(()) => failure,
        Err(refusal) => failure.hint(refusal.hint),
    }
}

fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // If the kernel does not say, it decides at each step.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_none_or(|mask| mask >> number & 1 == 1)
}

fn is_in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<&str> = map.split_whitespace().collect();
    !words.is_empty() && words != ["0", "0", "4294967295"]
}

fn is_writable(dir: &Path) -> bool {
    let existing = dir.ancestors().find(|dir| dir.exists());
    existing.is_some_and(|dir| access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok())
}

impl Places {
    /// Moves state and namespaces to a folder of this user if this is a user namespace and the system's are not writable.
    pub(crate) fn settle(mut self) -> Self {
        if self.state_dir == Path::new(SYSTEM_STATE)
            && is_in_user_namespace()
            && has_capability(CAP_SYS_ADMIN)
            && !(is_writable(&self.state_dir) && is_writable(Path::new(SYSTEM_NETNS)))
        {
            self.state_dir = private_dir();
            self.is_private = true;
        }
        self
    }

    /// Returns the folder of network namespaces.
    pub(crate) fn netns_dir(&self) -> PathBuf {
        if self.is_private { self.state_dir.join("netns") } else { SYSTEM_NETNS.into() }
    }

    /// Creates the private folder, if there is one, and sets up the loopback of its namespace, which nobody else does. The caller
    /// keeps the returned value as long as it uses the folder.
    pub(crate) fn prepare(&self) -> Outcome<Option<InUse>> {
        if !self.is_private {
            return Ok(None);
        }
        let socket = Socket::open(Protocol::Route)?;
        let lo = link::require(&socket, "lo")?;
        link::change(&socket, &lo, &Change { up: Some(true), ..Change::default() })
            .map_err(|error| self.explain(error))?;
        let dir = &self.state_dir;
        note(format!("netloom: {SYSTEM_STATE} and {SYSTEM_NETNS} are not writable, using {}", dir.display()));
        let in_use = InUse::create(dir).map_err(|error| {
            Failure::new(format!("cannot create folder {}: {error}", dir.display()))
                .hint("set XDG_RUNTIME_DIR or --state-dir to a writable folder of this user")
        })?;
        Ok(Some(in_use))
    }

    /// Adds what to try if the kernel refuses something that a user namespace without the other namespaces may not do.
    pub(crate) fn explain(&self, error: kernel::Error) -> Failure {
        let is_refused = self.is_private && error.kind() == Kind::Denied;
        let failure = Failure::from(error);
        if is_refused {
            failure.hint("create all namespaces together: `unshare -Urnm netloom ...`")
        } else {
            failure
        }
    }

    /// Returns the network with its host-local reservations in the private folder, if there is one.
    pub(crate) fn with_own_reservations(&self, list: NetworkList) -> Outcome<NetworkList> {
        if !self.is_private {
            return Ok(list);
        }
        let invalid = |error: &dyn std::fmt::Display| {
            Failure::new(format!("cannot parse network `{}`: {error}", list.name))
        };
        let mut value: Value = serde_json::from_slice(&list.bytes).map_err(|error| invalid(&error))?;
        let dir = self.state_dir.join("networks").display().to_string();
        match value.get_mut("plugins").and_then(Value::as_array_mut) {
            Some(plugins) => plugins.iter_mut().for_each(|plugin| set_data_dir(plugin, &dir)),
            None => set_data_dir(&mut value, &dir),
        }
        let text = value.to_string();
        NetworkList::parse(text.as_bytes())
            .or_else(|_| NetworkList::parse_single(text.as_bytes()))
            .map_err(|error| invalid(&error))
    }
}

/// A private folder that this process uses. The last of its users removes it, unless it holds attachments.
#[derive(Debug)]
pub(crate) struct InUse {
    dir: PathBuf,
    lock: File,
}

impl InUse {
    fn create(dir: &Path) -> io::Result<Self> {
        loop {
            match fs::DirBuilder::new().mode(0o700).create(dir) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let lock = match rustix::fs::open(dir, flags, Mode::empty()) {
                // The last user has just removed it.
                Err(Errno::NOENT) => continue,
                other => File::from(other?),
            };
            // In a folder for everybody, another user may have created it.
            if lock.metadata()?.uid() != rustix::process::geteuid().as_raw() {
                return Err(io::Error::new(ErrorKind::PermissionDenied, "it belongs to another user"));
            }
            lock.lock_shared()?;
            if FileId::of(dir) == Some(FileId::of_file(&lock)?) {
                return Ok(Self { dir: dir.to_owned(), lock });
            }
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let holds_nothing = |name: &str| {
            fs::read_dir(self.dir.join(name)).map_or(true, |mut entries| entries.next().is_none())
        };
        // What is not empty is for `netloom gc`.
        if self.lock.try_lock().is_ok() && ["results", "netloom/run", "netns"].into_iter().all(holds_nothing)
        {
            drop(fs::remove_dir_all(&self.dir));
        }
    }
}

fn set_data_dir(plugin: &mut Value, dir: &str) {
    if let Some(ipam) = plugin.get_mut("ipam").and_then(Value::as_object_mut)
        && ipam.get("type").and_then(Value::as_str) == Some("host-local")
        && !ipam.contains_key("dataDir")
    {
        ipam.insert("dataDir".into(), dir.into());
    }
}

/// Returns the folder for this network namespace, which is not created yet.
fn private_dir() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| is_writable(dir));
    let namespace = Netns::own().and_then(|netns| netns.identity()).map_or(0, |(_, inode)| inode);
    runtime.unwrap_or_else(std::env::temp_dir).join(format!("netloom-{namespace}"))
}
