//! `loopback`: sets the container's `lo` up.

use kernel::{
    addr,
    link::{self, Change, Link},
};
use netloom_plugin::{
    Error, Plugin, Request, Sandbox, Undo,
    result::v100::{Interface, IpConfig, Success},
};

use crate::{
    container_netns::ContainerNetns,
    error::{Explain, check_failed, invalid},
};

/// The plugin.
#[derive(Debug)]
pub struct Loopback;

const LO: &str = "lo";

impl Plugin for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let lo = link::require(&container.socket, LO).explain()?;
        set_up(&container, &lo, true)?;
        if !lo.up {
            let (socket, lo) = (container.socket.clone(), lo.clone());
            undo.push("set `lo` down", move || {
                link::change(&socket, &lo, &Change { up: Some(false), ..Change::default() }).explain()
            })?;
        }
        let addresses = addr::list(&container.socket, &lo).explain()?;
        if let Some(other) = addresses.iter().find(|address| !address.net.addr().is_loopback()) {
            return Err(invalid(format!(
                "loopback interface found with non-loopback address \"{}\"",
                other.net.addr()
            ))
            .details("remove that address from `lo` in the container"));
        }
        if let Some(prev) = &request.prev_result {
            return Ok(prev.clone());
        }
        let first = |v4: bool| addresses.iter().find(|address| address.net.addr().is_ipv4() == v4);
        Ok(Success {
            interfaces: vec![Interface {
                name: LO.to_owned(),
                mac: "00:00:00:00:00:00".to_owned(),
                sandbox: sandbox.netns_text(),
                ..Interface::default()
            }],
            ips: [first(true), first(false)]
                .into_iter()
                .flatten()
                .map(|address| IpConfig { address: address.net, gateway: None, interface: Some(0) })
                .collect(),
            ..Success::default()
        })
    }

    fn del(&self, _: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let Some(container) = ContainerNetns::open_if_exists(sandbox.netns.as_deref())? else {
            return Ok(());
        };
        let lo = link::require(&container.socket, LO).explain()?;
        set_up(&container, &lo, false)
    }

    fn checks_result(&self) -> bool {
        false
    }

    fn check(&self, _: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        if link::require(&container.socket, LO).explain()?.up {
            Ok(())
        } else {
            Err(check_failed("loopback interface is down"))
        }
    }
}

fn set_up(container: &ContainerNetns, lo: &Link, up: bool) -> Result<(), Error> {
    link::change(&container.socket, lo, &Change { up: Some(up), ..Change::default() }).explain()
}
