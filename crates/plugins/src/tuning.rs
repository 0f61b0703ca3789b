//! `tuning`: sysctls of the container and properties of its interface.

mod allowed;
mod saved;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use kernel::{
    link::{self, Change, Link, Mac},
    sysctl::{self, Setting},
};
use netloom_plugin::{
    Attachment, Error, Plugin, Request, Sandbox, Undo, is_abandoned, result::v100::Success,
};
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

/// The configuration as written, without the [`Settings`] beside these keys.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// Folder in which ADD saves the interface's previous properties, which DEL restores
    #[schemars(example = &"/run/cni/tuning", extend("default" = saved::DIR))]
    data_dir: String,
    runtime_config: RuntimeMac,
    args: Args,
}

/// Settings that the configuration has at its top level, and the runtime under `args.cni`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Settings {
    /// Sysctls of the container's network namespace, with string values. `IFNAME` in a name stands for the interface
    #[schemars(with = "BTreeMap<String, String>", example = serde_json::json!({"net.ipv4.conf.IFNAME.arp_filter": "1"}))]
    sysctl: Map<String, Value>,
    /// Hardware address of the interface
    #[schemars(example = &"c2:11:22:33:44:55")]
    mac: String,
    /// Promiscuous mode: the interface accepts every frame
    promisc: Option<bool>,
    /// MTU of the interface, at least 68. 0 leaves it unchanged
    #[schemars(example = 1450)]
    mtu: Option<i64>,
    /// All-multicast mode: the interface accepts every multicast frame
    allmulti: Option<bool>,
    /// Length of the interface's transmit queue in packets
    #[schemars(example = 2000)]
    #[serde(rename = "txQLen")]
    tx_q_len: Option<i64>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Args {
    cni: Settings,
}

/// The validated configuration.
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
    /// Reads and validates the configuration. Values of the runtime take precedence.
    fn of(request: &Request, ifname: &str) -> Result<Self, Error> {
        let written: Written = request.read()?;
        require_known_args(request)?;
        let (configured, requested): (Settings, Settings) = (request.read()?, written.args.cni);
        let mut sysctls = configured.sysctl;
        sysctls.extend(requested.sysctl);
        allowed::require(sysctls.keys().map(String::as_str))?;
        let sysctls = sysctls
            .iter()
            .map(|(key, value)| match value.as_str() {
                Some(value) => Ok((path(key, ifname)?, value.to_owned())),
                None => Err(invalid(format!("`sysctl.{key}` must be a string, such as \"1\""))
                    .details("put the value in quotes")),
            })
            .collect::<Result<_, Error>>()?;
        // The last one that is set takes precedence.
        let macs = [
            ("mac", configured.mac.as_str()),
            ("CNI_ARGS MAC", request.args.value("MAC").unwrap_or_default()),
            ("runtimeConfig.mac", &written.runtime_config.mac),
            ("args.cni.mac", &requested.mac),
        ];
        let mac = macs.iter().rev().find(|(_, text)| !text.is_empty());
        let mac = mac.map(|(key, text)| {
            text.parse().map_err(|error| {
                invalid(format!("`{key}` {text:?} is {error}")).details("write it as c2:11:22:33:44:55")
            })
        });
        let number = |key: &str, value: Option<i64>, least: i64| {
            let number = value.map(|value| u32::try_from(value).ok().filter(|_| value >= least).ok_or(value));
            number.transpose().map_err(|value| {
                invalid(format!("`{key}` {value} is out of range"))
                    .details(format!("use a number from {least} to 4294967295"))
            })
        };
        Ok(Self {
            sysctls,
            mac: mac.transpose()?,
            promiscuous: requested.promisc.or(configured.promisc).unwrap_or_default(),
            mtu: number("mtu", requested.mtu.or(configured.mtu).filter(|mtu| *mtu != 0), 68)?,
            all_multicast: requested.allmulti.or(configured.allmulti),
            queue: number("txQLen", requested.tx_q_len.or(configured.tx_q_len), 0)?,
        })
    }

    /// Returns the change of the interface's properties.
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

    /// Returns whether any property of the interface changes.
    fn changes_link(&self) -> bool {
        let Change { mac, promiscuous, mtu, all_multicast, queue, .. } = self.change();
        mac.is_some() || promiscuous.is_some() || mtu.is_some() || all_multicast.is_some() || queue.is_some()
    }
}

/// Returns the path below `net` of a key like `net.ipv4.conf.IFNAME.arp_filter`.
fn path(key: &str, ifname: &str) -> Result<String, Error> {
    // Dots in the interface's name are not path separators, so it is inserted last.
    let path = key.replace('.', "/").replacen("IFNAME", ifname, 1);
    let mut steps = path.split('/');
    let is_plain = |step: &str| !step.is_empty() && step != "." && step != ".." && !step.contains('\0');
    if steps.next() != Some("net") || steps.clone().count() < 1 || !steps.all(is_plain) {
        return Err(invalid(format!("invalid net sysctl key: {key:?}"))
            .details("use a key that begins with \"net.\": only those belong to the network namespace"));
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
            undo.push("remove the saved properties", {
                let file = file.clone();
                move || saved::remove(&file)
            })?;
            let (socket, before) = (container.socket.clone(), inside.clone());
            let reverse = reverse(&inside, &conf.change());
            undo.push(format!("restore `{ifname}`"), move || {
                link::change(&socket, &before, &reverse).explain()
            })?;
            link::change(&container.socket, &inside, &conf.change()).explain()?;
            if let (Some(before), Some(mac)) = (inside.mac, conf.mac) {
                update_spoof_check(request, sandbox, before, mac, undo)?;
            }
        }
        set_sysctls(container, &conf, undo)?;
        if let Some(mac) = conf.mac {
            let interfaces = result.interfaces.iter_mut().filter(|interface| interface.name == ifname);
            interfaces.for_each(|interface| interface.mac = mac.to_string());
        }
        Ok(result)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let file = saved_file(request, sandbox)?;
        let Some(saved) = Saved::read(&file)? else { return Ok(()) };
        if let Some(container) = ContainerNetns::open_if_exists(sandbox.netns.as_deref())?
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
            let actual = sysctl::read(Setting::Net(path)).explain()?;
            // The kernel separates several values with tabs.
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            if actual.as_deref().map(words) == Some(words(value)) {
                return Ok(());
            }
            let actual = actual.unwrap_or_else(|| "missing".into());
            Err(check_failed(format!("sysctl net/{path} is {actual}, configured is {value}")))
        };
        container
            .netns
            .run_from(&container.host, || conf.sysctls.iter().try_for_each(read))
            .explain()
            .flatten()?;
        let link = link::require(&container.socket, ifname).explain()?;
        let change = conf.change();
        let is_on = |on: bool| if on { "on" } else { "off" }.to_owned();
        let mac_text = |mac: Option<Mac>| mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
        // Each with the configured and the actual value.
        let properties = [
            ("hardware address", change.mac.map(|mac| (mac.to_string(), mac_text(link.mac)))),
            ("promiscuous mode", Some((is_on(conf.promiscuous), is_on(link.promiscuity > 0)))),
            ("MTU", change.mtu.map(|mtu| (mtu.to_string(), link.mtu.to_string()))),
            ("all-multicast mode", change.all_multicast.map(|all| (is_on(all), is_on(link.all_multicast)))),
            ("transmit queue length", change.queue.map(|queue| (queue.to_string(), link.queue.to_string()))),
        ];
        for (property, values) in properties {
            if let Some((configured, actual)) = values.filter(|(configured, actual)| configured != actual) {
                return Err(check_failed(format!(
                    "{property} of `{ifname}` is not as configured: {actual} instead of {configured}"
                )));
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Conf::of(request, "IFNAME").map(drop)
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        let written: Written = request.read()?;
        let mut errors = Errors::default();
        for file in saved_files(&written.data_dir, request.config.name.as_str())? {
            let is_stale = !valid.iter().any(|a| is_saved_file(&file, a)) && !is_abandoned();
            if is_stale || saved::is_abandoned(&file) {
                errors.note(saved::remove(&file));
            }
        }
        errors.into_result()
    }
}

/// Lists the files with saved properties of a network's interfaces, and those that a killed ADD left of any network.
pub(crate) fn saved_files(data_dir: &str, network: &str) -> Result<Vec<PathBuf>, Error> {
    let mut files = saved::list(&folder(data_dir))?;
    files.retain(|(file, saved)| saved.is_of(network) || saved::is_abandoned(file));
    Ok(files.into_iter().map(|(file, _)| file).collect())
}

/// Returns whether a file has the saved properties of an attachment's interface.
pub(crate) fn is_saved_file(file: &Path, attachment: &Attachment) -> bool {
    let name = saved::file_name(&attachment.container_id, &attachment.ifname);
    file.file_name().is_some_and(|file| file == name.as_str())
}

fn data_dir(written: &Written) -> PathBuf {
    folder(&written.data_dir)
}

fn folder(data_dir: &str) -> PathBuf {
    PathBuf::from(if data_dir.is_empty() { saved::DIR } else { data_dir })
}

fn saved_file(request: &Request, sandbox: &Sandbox) -> Result<PathBuf, Error> {
    let owner = Owner::of(request, sandbox);
    Ok(data_dir(&request.read()?).join(saved::file_name(owner.container, owner.ifname)))
}

/// Returns the change that reverts another one.
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

/// Makes the bridge's MAC spoof check accept the new address instead of the previous one.
fn update_spoof_check(
    request: &Request,
    sandbox: &Sandbox,
    before: Mac,
    mac: Mac,
    undo: &mut Undo,
) -> Result<(), Error> {
    let Some(netfilter) = cleanup::netfilter()? else { return Ok(()) };
    let mark = Owner::of(request, sandbox).mark();
    spoof::follow(&netfilter, &mark, mac).explain()?;
    undo.push("restore the spoof check", move || spoof::follow(&netfilter, &mark, before).explain())
}

/// Writes the sysctls and registers the restoration of the old values.
fn set_sysctls(container: ContainerNetns, conf: &Conf, undo: &mut Undo) -> Result<(), Error> {
    if conf.sysctls.is_empty() {
        return Ok(());
    }
    let mut before = Vec::new();
    let set = |(path, value): &(String, String)| {
        let old = sysctl::read(Setting::Net(path)).explain()?;
        sysctl::write(Setting::Net(path), value).explain()?;
        before.extend(old.map(|old| (path.clone(), old)));
        Ok(())
    };
    let outcome = container
        .netns
        .run_from(&container.host, || conf.sysctls.iter().try_for_each(set))
        .explain()
        .flatten();
    undo.push("restore sysctls", move || {
        let restore = |(path, old): &(String, String)| sysctl::write(Setting::Net(path), old);
        let all = || before.iter().rev().try_for_each(restore);
        container.netns.run_from(&container.host, all).and_then(|done| done).explain()
    })?;
    outcome
}
