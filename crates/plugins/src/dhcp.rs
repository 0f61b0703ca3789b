//! `dhcp`: addresses from the network's DHCP servers. A daemon (`dhcp daemon`) obtains and renews the leases.

use std::path::PathBuf;

use dhcp::{
    call::{Answer, Call, DEFAULT_SOCKET, Owner, ask},
    lease::Lease,
    v4, v6,
};
use hmac_sha512::Hash as Sha512;
use netloom_plugin::{
    Attachment, Code, Error, Plugin, Request, Sandbox, Undo, is_abandoned,
    result::{
        Route,
        v100::{IpConfig, Success},
    },
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    error::{check_failed, invalid},
    runtime_args::missing_ipam,
};

/// The plugin.
#[derive(Debug)]
pub struct Dhcp;

/// The value of `ipam` as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Ipam {
    /// Socket of the daemon
    #[schemars(example = &"/run/cni/dhcp.sock", extend("default" = DEFAULT_SOCKET))]
    daemon_socket_path: String,
    /// Options to send to the server
    #[schemars(example = serde_json::json!([{"option": "host-name", "fromArg": "K8S_POD_NAME"}]))]
    provide: Vec<ProvidedOption>,
    /// Options to request in addition to subnet mask, router, DNS servers, domain, search list, static and classless routes
    #[schemars(example = serde_json::json!([{"option": "121"}]))]
    request: Vec<RequestedOption>,
    /// Metric of the lease's routes
    #[schemars(example = 100, range(min = 0, max = 4_294_967_295_u32))]
    priority: i64,
    /// Obtain an IPv4 lease (RFC 2131)
    #[schemars(extend("default" = true))]
    ipv4: Option<bool>,
    /// Obtain an IPv6 lease (RFC 8415, IA_NA). The reference plugin does not support IPv6
    ipv6: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct ProvidedOption {
    /// Number of the option, or one of `subnet-mask`, `routers`, `host-name`, `vendor-class-identifier`, `dhcp-client-identifier`, `user-class`
    #[schemars(example = &"host-name")]
    option: String,
    /// Value to send, at most 255 bytes
    #[schemars(example = &"web-1")]
    value: String,
    /// Key of `CNI_ARGS` whose value is sent
    #[schemars(example = &"K8S_POD_NAME")]
    from_arg: String,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct RequestedOption {
    /// Number or name of the option
    #[schemars(example = &"121")]
    option: String,
    /// Request none of the default options
    skip_default: bool,
}

/// The configuration as written.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Written {
    #[schemars(with = "Ipam")]
    #[serde(default)]
    ipam: Option<Ipam>,
}

/// The validated configuration.
struct Conf {
    socket: PathBuf,
    provide: Vec<(u8, Vec<u8>)>,
    request: Vec<u8>,
    priority: u32,
    ipv4: bool,
    ipv6: bool,
}

/// Option names as in dhcp-options(5). Other options are given by number.
const NAMES: [(&str, u8); 6] = [
    ("subnet-mask", 1),
    ("routers", 3),
    ("host-name", 12),
    ("vendor-class-identifier", 60),
    ("dhcp-client-identifier", 61),
    ("user-class", 77),
];

impl Conf {
    /// Reads and validates the configuration.
    fn of(request: &Request) -> Result<Self, Error> {
        let Ipam { daemon_socket_path, provide, request: wanted, priority, ipv4, ipv6 } = ipam(request)?;
        let mut provided = Vec::new();
        for (index, option) in provide.iter().enumerate() {
            let key = format!("ipam.provide[{index}]");
            let number = number(&option.option, &key)?;
            let from_arg = request.args.value(&option.from_arg).unwrap_or_default();
            for value in [&option.value[..], from_arg].into_iter().filter(|value| !value.is_empty()) {
                if value.len() > 255 {
                    return Err(invalid(format!(
                        "`{key}.value`: value too long for option {:?}",
                        option.option
                    ))
                    .details("shorten the value to at most 255 bytes"));
                }
                provided.push((number, value.as_bytes().to_vec()));
            }
        }
        let skip_default = wanted.iter().any(|option| option.skip_default);
        let mut requested = if skip_default { Vec::new() } else { v4::DEFAULT_REQUEST.to_vec() };
        for (index, option) in wanted.iter().enumerate().filter(|(_, option)| !option.option.is_empty()) {
            requested.push(number(&option.option, &format!("ipam.request[{index}]"))?);
        }
        requested.sort_unstable();
        requested.dedup();
        let ipv4 = ipv4.unwrap_or(true);
        if !ipv4 && !ipv6 {
            return Err(invalid("`ipam.ipv4` is false and `ipam.ipv6` is not set: no address is requested")
                .details("set `ipam.ipv6` to true, or leave `ipam.ipv4` out"));
        }
        Ok(Self {
            socket: socket(&daemon_socket_path)?,
            provide: provided,
            request: requested,
            priority: u32::try_from(priority).map_err(|_| {
                invalid(format!("`ipam.priority` {priority} must be between 0 and 4294967295"))
                    .details("set it to such a number, or leave it out")
            })?,
            ipv4,
            ipv6,
        })
    }
}

fn ipam(request: &Request) -> Result<Ipam, Error> {
    request.read::<Written>()?.ipam.ok_or_else(missing_ipam)
}

fn socket(written: &str) -> Result<PathBuf, Error> {
    if written.is_empty() {
        return Ok(DEFAULT_SOCKET.into());
    }
    let path = PathBuf::from(written);
    // `sun_path` of unix(7).
    if !path.is_absolute() || written.len() > 107 {
        return Err(invalid(format!(
            "`ipam.daemonSocketPath` {written:?} must be an absolute path of at most 107 bytes"
        ))
        .details(format!("set it to such a path, or leave it out for {DEFAULT_SOCKET}")));
    }
    Ok(path)
}

fn number(name: &str, key: &str) -> Result<u8, Error> {
    let known = NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, number)| number);
    known.or_else(|| name.parse().ok()).ok_or_else(|| {
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        invalid(format!("`{key}.option`: Can not parse option {name:?}"))
            .details(format!("use a number from 0 to 255, or one of {}", names.join(", ")))
    })
}

fn owner(request: &Request, sandbox: &Sandbox) -> Owner {
    Owner {
        network: request.config.name.as_str().to_owned(),
        container: sandbox.container_id.as_str().to_owned(),
        ifname: sandbox.ifname.as_str().to_owned(),
    }
}

/// Returns the client identifier that the reference plugin would send, so that a server assigns the same address to both.
fn client_id(owner: &Owner) -> Vec<u8> {
    const LONGEST: usize = 254;
    let mut name = format!("{}/{}/{}", owner.container, owner.network, owner.ifname).into_bytes();
    name.truncate(LONGEST);
    // Type 0: not a hardware address (RFC 2132, 9.14).
    [&[0], &name[..]].concat()
}

/// Returns the client's DUID of type UUID (RFC 6355), derived from the client identifier.
fn duid(client_id: &[u8]) -> Vec<u8> {
    [&[0, 4], &Sha512::hash(client_id)[..16]].concat()
}

impl Plugin for Dhcp {
    fn name(&self) -> &'static str {
        "dhcp"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf = Conf::of(request)?;
        let owner = owner(request, sandbox);
        let client_id = client_id(&owner);
        let netns = sandbox.require_netns()?;
        let call = Call::Acquire {
            owner: owner.clone(),
            netns: std::path::absolute(netns).unwrap_or_else(|_| netns.to_owned()),
            v4: conf.ipv4.then(|| v4::Wishes {
                client_id: client_id.clone(),
                provide: conf.provide.clone(),
                request: conf.request.clone(),
                broadcast: false,
            }),
            v6: conf.ipv6.then(|| v6::Wishes { duid: duid(&client_id), iaid: 1, provide: Vec::new() }),
            priority: conf.priority,
        };
        let socket = conf.socket.clone();
        undo.push("release the lease", move || match ask(&socket, &Call::Release(owner)) {
            Ok(Answer::Failed(why)) => Err(Error::new(Code::Internal, why).details(RELEASE_HINT)),
            // Without a daemon there is no lease.
            _ => Ok(()),
        })?;
        match call_daemon(&conf.socket, &call, Code::TryAgainLater)? {
            Answer::Leases(leases) => Ok(result(&leases, conf.priority)),
            Answer::Done => Err(Error::new(Code::Internal, "the DHCP daemon returned no lease")
                .details("restart the DHCP daemon: it answered with something other than a lease")),
            Answer::Failed(why) => Err(Error::new(
                Code::Internal,
                format!("the DHCP daemon got no lease: {why}"),
            )
            .details(
                "check that a DHCP server serves that link: `tcpdump -ni LINK port 67` shows requests and answers",
            )),
        }
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let socket = socket(&ipam(request)?.daemon_socket_path)?;
        let owner = owner(request, sandbox);
        match ask(&socket, &Call::Release(owner.clone())) {
            Ok(Answer::Failed(why)) => Err(Error::new(Code::Internal, why).details(RELEASE_HINT)),
            Ok(_) => Ok(()),
            // The daemon does not run. A new one must not renew the lease, which then expires at the server.
            Err(_) => dhcp::daemon::forget(&socket, &owner).map_err(|error| {
                Error::new(Code::Io, format!("cannot remove the stored lease: {error}"))
                    .details("make the daemon's folder of leases writable, then call DEL again")
            }),
        }
    }

    fn checks_result(&self) -> bool {
        false
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        match call_daemon(&conf.socket, &Call::Check(owner(request, sandbox)), Code::TryAgainLater)? {
            Answer::Failed(why) => Err(check_failed(why)),
            Answer::Leases(_) | Answer::Done => Ok(()),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        call_daemon(&Conf::of(request)?.socket, &Call::Ping, Code::NotAvailable).map(drop)
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        let socket = socket(&ipam(request)?.daemon_socket_path)?;
        let call = Call::Collect {
            network: request.config.name.as_str().to_owned(),
            valid: valid.iter().map(|it| (it.container_id.clone(), it.ifname.clone())).collect(),
        };
        if is_abandoned() {
            return Ok(());
        }
        // Without a daemon there are no leases.
        drop(ask(&socket, &call));
        Ok(())
    }
}

/// What to do when the daemon cannot release a lease.
const RELEASE_HINT: &str = "call DEL again; the lease also expires at the server by itself";

/// Sends a call to the daemon. `code` is the error's code if it cannot be reached.
fn call_daemon(socket: &std::path::Path, call: &Call, code: Code) -> Result<Answer, Error> {
    ask(socket, call).map_err(|error| {
        Error::new(code, format!("error dialing DHCP daemon at {}: {error}", socket.display()))
            .details("start it with `/opt/cni/bin/dhcp daemon`, or enable the systemd unit cni-dhcp.socket")
    })
}

/// Converts leases to a result.
fn result(leases: &[Lease], priority: u32) -> Success {
    let mut result = Success::default();
    for lease in leases {
        result.ips.push(IpConfig { address: lease.address, gateway: lease.gateway, interface: None });
        result.routes.extend(lease.routes.iter().map(|route| Route {
            gw: route.gateway,
            priority,
            scope: route.gateway.is_none().then_some(kernel::route::SCOPE_LINK),
            ..Route::new(route.dst, None)
        }));
        result.dns.nameservers.extend(lease.dns.servers.iter().map(ToString::to_string));
        if result.dns.domain.is_empty() {
            result.dns.domain.clone_from(&lease.dns.domain);
        }
        result.dns.search.extend(lease.dns.search.iter().cloned());
    }
    result
}
