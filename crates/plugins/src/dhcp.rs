//! `dhcp`: addresses from the network's own servers, kept by the daemon (`dhcp daemon`).

use std::path::PathBuf;

use dhcp::{
    call::{Answer, Call, DEFAULT_SOCKET, Who, ask},
    lease::Lease,
    v4, v6,
};
use hmac_sha512::Hash as Sha512;
use netloom_plugin::{
    Attachment, Code, Error, Plugin, Request, Sandbox, Undo,
    result::{
        Route,
        v100::{IpConfig, Success},
    },
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::failure::invalid;

/// The plugin.
#[derive(Debug)]
pub struct Dhcp;

/// `ipam` as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Ipam {
    /// Where the daemon listens
    #[schemars(example = &"/run/cni/dhcp.sock", extend("default" = DEFAULT_SOCKET))]
    daemon_socket_path: String,
    /// Options to send along
    #[schemars(example = serde_json::json!([{"option": "host-name", "fromArg": "K8S_POD_NAME"}]))]
    provide: Vec<Provide>,
    /// Options to ask for beside mask, router, DNS servers, domain, search list, static and classless routes
    #[schemars(example = serde_json::json!([{"option": "121"}]))]
    request: Vec<Wanted>,
    /// Metric of the routes
    #[schemars(example = 100, range(min = 0, max = 4_294_967_295_u32))]
    priority: i64,
    /// A lease of IPv4 (RFC 2131)
    #[schemars(extend("default" = true))]
    ipv4: Option<bool>,
    /// A lease of IPv6 (RFC 8415, IA_NA); the reference plugin has no IPv6
    ipv6: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Provide {
    /// Its number, or one of `subnet-mask`, `routers`, `host-name`, `vendor-class-identifier`, `dhcp-client-identifier`, `user-class`
    #[schemars(example = &"host-name")]
    option: String,
    /// A text, at most 255 bytes
    #[schemars(example = &"web-1")]
    value: String,
    /// A key of `CNI_ARGS`, whose value is sent
    #[schemars(example = &"K8S_POD_NAME")]
    from_arg: String,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Wanted {
    /// Its number or name
    #[schemars(example = &"121")]
    option: String,
    /// Nothing else is asked for
    skip_default: bool,
}

/// The configuration as written.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Written {
    #[schemars(with = "Ipam")]
    #[serde(default)]
    ipam: Option<Ipam>,
}

/// The configuration as meant.
struct Conf {
    socket: PathBuf,
    provide: Vec<(u8, Vec<u8>)>,
    request: Vec<u8>,
    priority: u32,
    ipv4: bool,
    ipv6: bool,
}

/// Names of options as in dhcp-options(5); others go by their number.
const NAMES: [(&str, u8); 6] = [
    ("subnet-mask", 1),
    ("routers", 3),
    ("host-name", 12),
    ("vendor-class-identifier", 60),
    ("dhcp-client-identifier", 61),
    ("user-class", 77),
];

impl Conf {
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
                    )));
                }
                provided.push((number, value.as_bytes().to_vec()));
            }
        }
        let skip_default = wanted.iter().any(|option| option.skip_default);
        let mut asked = if skip_default { Vec::new() } else { v4::DEFAULT_REQUEST.to_vec() };
        for (index, option) in wanted.iter().enumerate().filter(|(_, option)| !option.option.is_empty()) {
            asked.push(number(&option.option, &format!("ipam.request[{index}]"))?);
        }
        asked.sort_unstable();
        asked.dedup();
        let ipv4 = ipv4.unwrap_or(true);
        if !ipv4 && !ipv6 {
            return Err(invalid("`ipam.ipv4` is false and `ipam.ipv6` is not set: no address is asked for"));
        }
        Ok(Self {
            socket: socket(&daemon_socket_path)?,
            provide: provided,
            request: asked,
            priority: u32::try_from(priority).map_err(|_| {
                invalid(format!("`ipam.priority` {priority} must be between 0 and 4294967295"))
            })?,
            ipv4,
            ipv6,
        })
    }
}

fn ipam(request: &Request) -> Result<Ipam, Error> {
    request.read::<Written>()?.ipam.ok_or_else(|| invalid("IPAM config missing 'ipam' key"))
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
        )));
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

fn who(request: &Request, sandbox: &Sandbox) -> Who {
    Who {
        network: request.config.name.as_str().to_owned(),
        container: sandbox.container_id.as_str().to_owned(),
        ifname: sandbox.ifname.as_str().to_owned(),
    }
}

/// Returns the client's name as the reference makes it, so that a server gives the same address to either.
fn client_id(who: &Who) -> Vec<u8> {
    const LONGEST: usize = 254;
    let mut name = format!("{}/{}/{}", who.container, who.network, who.ifname).into_bytes();
    name.truncate(LONGEST);
    // Type 0: not a hardware address (RFC 2132, 9.14).
    [&[0], &name[..]].concat()
}

/// Returns the client's DUID of type UUID (RFC 6355), which follows from its name.
fn duid(client_id: &[u8]) -> Vec<u8> {
    [&[0, 4], &Sha512::hash(client_id)[..16]].concat()
}

impl Plugin for Dhcp {
    fn name(&self) -> &'static str {
        "dhcp"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf = Conf::of(request)?;
        let who = who(request, sandbox);
        let client_id = client_id(&who);
        let netns = sandbox.require_netns()?;
        let call = Call::Acquire {
            who: who.clone(),
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
        undo.push("give the lease back", move || match ask(&socket, &Call::Release(who)) {
            Ok(Answer::Failed(why)) => Err(Error::new(Code::Internal, why)),
            // Without a daemon there is no lease.
            _ => Ok(()),
        })?;
        match asked(&conf.socket, &call, Code::TryAgainLater)? {
            Answer::Leases(leases) => Ok(result(&leases, conf.priority)),
            Answer::Done => Err(Error::new(Code::Internal, "the DHCP daemon gave no lease")),
            Answer::Failed(why) => Err(Error::new(
                Code::Internal,
                format!("the DHCP daemon got no lease: {why}"),
            )
            .details(
                "is there a DHCP server on that link? `tcpdump -ni LINK port 67` shows who asks and answers",
            )),
        }
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let socket = socket(&ipam(request)?.daemon_socket_path)?;
        let who = who(request, sandbox);
        match ask(&socket, &Call::Release(who.clone())) {
            Ok(Answer::Failed(why)) => Err(Error::new(Code::Internal, why)),
            Ok(_) => Ok(()),
            // It does not run: the next one is not to keep the lease, which ends by itself at the server.
            Err(_) => dhcp::daemon::forget(&socket, &who)
                .map_err(|error| Error::new(Code::Io, format!("cannot forget the lease: {error}"))),
        }
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        match asked(&conf.socket, &Call::Check(who(request, sandbox)), Code::TryAgainLater)? {
            Answer::Failed(why) => Err(crate::failure::differs(why)),
            Answer::Leases(_) | Answer::Done => Ok(()),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        asked(&Conf::of(request)?.socket, &Call::Ping, Code::NotAvailable).map(drop)
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        let socket = socket(&ipam(request)?.daemon_socket_path)?;
        let call = Call::Collect {
            network: request.config.name.as_str().to_owned(),
            valid: valid.iter().map(|it| (it.container_id.clone(), it.ifname.clone())).collect(),
        };
        // Without a daemon nobody keeps a lease.
        drop(ask(&socket, &call));
        Ok(())
    }
}

fn asked(socket: &std::path::Path, call: &Call, code: Code) -> Result<Answer, Error> {
    ask(socket, call).map_err(|error| {
        Error::new(code, format!("error dialing DHCP daemon at {}: {error}", socket.display()))
            .details("start it: `/opt/cni/bin/dhcp daemon`, or the systemd unit cni-dhcp.socket")
    })
}

fn result(leases: &[Lease], priority: u32) -> Success {
    /// `RT_SCOPE_LINK`: a destination on the link itself.
    const LINK_SCOPE: u8 = 253;
    let mut result = Success::default();
    for lease in leases {
        result.ips.push(IpConfig { address: lease.address, gateway: lease.gateway, interface: None });
        result.routes.extend(lease.routes.iter().map(|route| Route {
            gw: route.gateway,
            priority,
            scope: route.gateway.is_none().then_some(LINK_SCOPE),
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
