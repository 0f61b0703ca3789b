//! The runtime side of CNI: attaches containers to networks.
//!
//! [`load`] finds network configurations. [`Runtime`] runs their plugins for a container and caches the results in the files and
//! format of Go's libcni, so that either can detach what the other attached. Calls block.
//!
//! ```no_run
//! use netloom_runtime::{Container, Runtime, load};
//!
//! let list = load::network("/etc/cni/net.d".as_ref(), "lab")?;
//! let runtime = Runtime::new(vec!["/opt/cni/bin".into()]);
//! let container = Container::new("c1", "/run/netns/c1");
//! let result = runtime.add(&list, &container)?;
//! println!("{}", result.to_json());
//! runtime.del(&list, &container)?;
//! # Ok::<(), netloom_runtime::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod cache;
mod container;
mod error;
pub mod load;
mod lock;
mod runtime;

pub use container::Container;
pub use error::Error;
pub use lock::{LockFile, LockKind};
pub use netloom_invoke::{Call, Environment, Executor, LoggedProcesses, Outcome, Processes, Verb};
pub use netloom_types as types;
pub use runtime::{Runtime, Stale};

/// Flags that refuse a symbolic link, which could redirect a write out of the state folder.
const NO_LINK: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
