//! `tuning`: sysctls and properties of the container's interface, as the network wants them.

mod allowed;
mod saved;

use std::{collections::BTreeMap, path::PathBuf};

use kernel::{
    link::{self, Change, Link, Mac},
    sysctl::{self, Setting},
};
use netloom_plugin::{Attachment, Error, Plugin, Request, Sandbox, Undo, result::v100::Success};
use ruleset::spoof;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    cleanup,
    container_netns::ContainerNetns,
    error::{Errors, Explain, check_failed, invalid},
    owner::Owner,
    prev_result::prev_result,
    runtime_args::{RuntimeMac, require_known_args},
};

use saved::Saved;

/// The plugin.
#[derive(Debug)]
pub struct Tuning;

/// The configuration as written, beside the network's own [`Wishes`].
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// Folder of the values that DEL puts back
    #[schemars(example = &"/run/cni/tuning", extend("default" = saved::DIR))]
    data_dir: String,
    runtime_config: RuntimeMac,
    args: Args,
}

/// What can be wished for by the network, and in `args.cni` by the runtime.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Wishes {
    /// Sysctls of the container's namespace, as texts; `IFNAME` in a name stands for the interface
    #[schemars(with = "BTreeMap<String, String>", example = serde_json::json!({"net.ipv4.conf.IFNAME.arp_filter": "1"}))]
    sysctl: Map<String, Value>,
    /// Hardware address
    #[schemars(example = &"c2:11:22:33:44:55")]
    mac: String,
    /// The interface takes every frame
    promisc: Option<bool>,
    /// MTU, at least 68; 0 is as it was
    #[schemars(example = 1450)]
    mtu: Option<i64>,
    /// The interface takes every multicast frame
    allmulti: Option<bool>,
    /// Length of its transmit queue, in packets
    #[schemars(example = 2000)]
    #[serde(rename = "txQLen")]
    tx_q_len: Option<i64>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Args {
    cni: Wishes,
}

/// The configuration as meant.
struct Conf {
    /// Paths below `net` in `/proc/sys`, with the value of each.
    sysctls: Vec<(String, String)>,
    mac: Option<Mac>,
    promiscuous: bool,
    mtu: Option<u32>,
    all_multicast: Option<bool>,
    queue: Option<u32>,
}

impl Conf {
    fn of(request: &Request, ifname: &str) -> Result<Self, Error> {
        let written: Written = request.read()?;
        require_known_args(request)?;
        let (of_network, asked): (Wishes, Wishes) = (request.read()?, written.args.cni);
        let mut wished = of_network.sysctl;
        wished.extend(asked.sysctl);
        allowed::require(wished.keys().map(String::as_str))?;
        let sysctls = wished
            .iter()
            .map(|(key, value)| match value.as_str() {
                Some(value) => Ok((path(key, ifname)?, value.to_owned())),
                None => Err(invalid(format!("`sysctl.{key}` must be a text, such as \"1\""))),
            })
            .collect::<Result<_, Error>>()?;
        // The last that is said counts.
        let macs = [
            ("mac", of_network.mac.as_str()),
            ("CNI_ARGS MAC", request.args.value("MAC").unwrap_or_default()),
            ("runtimeConfig.mac", &written.runtime_config.mac),
            ("args.cni.mac", &asked.mac),
        ];
        let mac = macs.iter().rev().find(|(_, text)| !text.is_empty());
        let mac = mac
            .map(|(key, text)| text.parse().map_err(|error| invalid(format!("`{key}` {text:?} is {error}"))));
        let number = |key: &str, value: Option<i64>, least: i64| {
            let number = value.map(|value| u32::try_from(value).ok().filter(|_| value >= least).ok_or(value));
            number.transpose().map_err(|value| invalid(format!("`{key}` {value} is no length in range")))
        };
        Ok(Self {
            sysctls,
            mac: mac.transpose()?,
            promiscuous: asked.promisc.or(of_network.promisc).unwrap_or_default(),
            mtu: number("mtu", asked.mtu.or(of_network.mtu).filter(|mtu| *mtu != 0), 68)?,
            all_multicast: asked.allmulti.or(of_network.allmulti),
            queue: number("txQLen", asked.tx_q_len.or(of_network.tx_q_len), 0)?,
        })
    }

    /// Returns what it changes of the interface.
    fn change(&self) -> Change<'static> {
        Change {
            mac: self.mac,
            promiscuous: self.promiscuous.then_some(true),
            mtu: self.mtu,
            all_multicast: self.all_multicast,
            queue: self.queue,
            ..Change::default()
        }
    }

    fn changes_link(&self) -> bool {
        let Change { mac, promiscuous, mtu, all_multicast, queue, .. } = self.change();
        mac.is_some() || promiscuous.is_some() || mtu.is_some() || all_multicast.is_some() || queue.is_some()
    }
}

/// Returns the path below `net` of a key like `net.ipv4.conf.IFNAME.arp_filter`.
fn path(key: &str, ifname: &str) -> Result<String, Error> {
    // Dots of the interface's name are none of the path's.
    let path = key.replace('.', "/").replacen("IFNAME", ifname, 1);
    let mut steps = path.split('/');
    let is_plain = |step: &str| !step.is_empty() && step != "." && step != ".." && !step.contains('\0');
    if steps.next() != Some("net") || steps.clone().count() < 1 || !steps.all(is_plain) {
        return Err(invalid(format!("invalid net sysctl key: {key:?}"))
            .details("a key begins with \"net.\"; others are not the network namespace's own"));
    }
    Ok(path["net/".len()..].to_owned())
}

impl Plugin for Tuning {
    fn name(&self) -> &'static str {
        "tuning"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let mut result = prev_result(request)?;
        let ifname = sandbox.ifname.as_str();
        let conf = Conf::of(request, ifname)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        if conf.changes_link() {
            let inside = link::require(&container.socket, ifname).explain()?;
            let file = saved_file(request, sandbox)?;
            Saved::of(&inside, &conf.change(), request.config.name.as_str()).write(&file)?;
            undo.push("forget what the interface was", {
                let file = file.clone();
                move || saved::remove(&file)
            })?;
            let (socket, was) = (container.socket.clone(), inside.clone());
            let back = reverse(&inside, &conf.change());
            undo.push(format!("change `{ifname}` back"), move || {
                link::change(&socket, &was, &back).explain()
            })?;
            link::change(&container.socket, &inside, &conf.change()).explain()?;
            if let (Some(before), Some(mac)) = (inside.mac, conf.mac) {
                follow_with_spoof_check(request, sandbox, before, mac, undo)?;
            }
        }
        set_sysctls(container, &conf, undo)?;
        if let Some(mac) = conf.mac {
            let of_container = result.interfaces.iter_mut().filter(|interface| interface.name == ifname);
            of_container.for_each(|interface| interface.mac = mac.to_string());
        }
        Ok(result)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let file = saved_file(request, sandbox)?;
        let Some(saved) = Saved::read(&file)? else { return Ok(()) };
        if let Some(container) = ContainerNetns::open_if_there(sandbox.netns.as_deref())?
            && let Some(inside) = link::find(&container.socket, sandbox.ifname.as_str()).explain()?
        {
            link::change(&container.socket, &inside, &saved.change()).explain()?;
        }
        saved::remove(&file)
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        prev_result(request)?;
        let ifname = sandbox.ifname.as_str();
        let conf = Conf::of(request, ifname)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let read = |(path, value): &(String, String)| {
            let there = sysctl::read(Setting::Net(path)).explain()?;
            // The kernel separates several values by tabs.
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            if there.as_deref().map(words) == Some(words(value)) {
                return Ok(());
            }
            let there = there.unwrap_or_else(|| "missing".into());
            Err(check_failed(format!("sysctl net/{path} is {there}, configured is {value}")))
        };
        container
            .netns
            .run_from(&container.host, || conf.sysctls.iter().try_for_each(read))
            .explain()
            .flatten()?;
        let link = link::require(&container.socket, ifname).explain()?;
        let change = conf.change();
        let wrong = [
            ("hardware address", change.mac.is_some_and(|mac| link.mac != Some(mac))),
            ("promiscuous mode", conf.promiscuous != (link.promiscuity > 0)),
            ("MTU", change.mtu.is_some_and(|mtu| link.mtu != mtu)),
            ("all-multicast mode", change.all_multicast.is_some_and(|all| link.all_multicast != all)),
            ("transmit queue length", change.queue.is_some_and(|queue| link.queue != queue)),
        ];
        match wrong.iter().find(|(_, wrong)| *wrong) {
            Some((what, _)) => {
                Err(check_failed(format!("{what} of `{ifname}` is not as configured: {link:?}")))
            }
            None => Ok(()),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Conf::of(request, "IFNAME").map(drop)
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        let written: Written = request.read()?;
        let mut errors = Errors::default();
        for (file, saved) in saved::list(&data_dir(&written))? {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_valid = valid.iter().any(|a| name == saved::file_name(&a.container_id, &a.ifname));
            if saved.is_of(request.config.name.as_str()) && !is_valid || saved::is_abandoned(&file) {
                errors.note(saved::remove(&file));
            }
        }
        errors.into_result()
    }
}

fn data_dir(written: &Written) -> PathBuf {
    PathBuf::from(if written.data_dir.is_empty() { saved::DIR } else { &written.data_dir })
}

fn saved_file(request: &Request, sandbox: &Sandbox) -> Result<PathBuf, Error> {
    let owner = Owner::of(request, sandbox);
    Ok(data_dir(&request.read()?).join(saved::file_name(owner.container, owner.ifname)))
}

/// Returns the change that takes another one back.
fn reverse(link: &Link, change: &Change<'_>) -> Change<'static> {
    Change {
        mac: change.mac.and(link.mac),
        promiscuous: change.promiscuous.map(|_| link.promiscuity > 0),
        mtu: change.mtu.map(|_| link.mtu),
        all_multicast: change.all_multicast.map(|_| link.all_multicast),
        queue: change.queue.map(|_| link.queue),
        ..Change::default()
    }
}

/// What the bridge lets pass from the container goes by the new address.
fn follow_with_spoof_check(
    request: &Request,
    sandbox: &Sandbox,
    before: Mac,
    mac: Mac,
    undo: &mut Undo,
) -> Result<(), Error> {
    let Some(netfilter) = cleanup::netfilter()? else { return Ok(()) };
    let mark = Owner::of(request, sandbox).mark();
    spoof::follow(&netfilter, &mark, mac).explain()?;
    undo.push("have the spoof check go by the address of before", move || {
        spoof::follow(&netfilter, &mark, before).explain()
    })
}

fn set_sysctls(container: ContainerNetns, conf: &Conf, undo: &mut Undo) -> Result<(), Error> {
    if conf.sysctls.is_empty() {
        return Ok(());
    }
    let mut before = Vec::new();
    let set = |(path, value): &(String, String)| {
        let was = sysctl::read(Setting::Net(path)).explain()?;
        sysctl::write(Setting::Net(path), value).explain()?;
        before.extend(was.map(|was| (path.clone(), was)));
        Ok(())
    };
    let outcome = container
        .netns
        .run_from(&container.host, || conf.sysctls.iter().try_for_each(set))
        .explain()
        .flatten();
    undo.push("set sysctls back", move || {
        let back = |(path, was): &(String, String)| sysctl::write(Setting::Net(path), was);
        let all = || before.iter().rev().try_for_each(back);
        container.netns.run_from(&container.host, all).and_then(|done| done).explain()
    })?;
    outcome
}
