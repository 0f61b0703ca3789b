//! What a living attachment was promised: its link, addresses, routes, reservations and published ports, each as other programs
//! see it, and no address that another living attachment has.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::Mutex,
};

use serde_json::Value;

use super::place::{HOST6, NETWORKS, PATIENCE, Place, host_port};

/// The addresses of living attachments, each with its attachment.
#[derive(Default)]
pub(super) struct Given(Mutex<BTreeMap<String, usize>>);

impl Given {
    /// Records the addresses of a new attachment. Returns those that another one has.
    pub(super) fn record(&self, attachment: usize, result: &Value) -> Vec<String> {
        let Ok(mut given) = self.0.lock() else { return Vec::new() };
        let twice = |address: String| {
            let other = given.insert(format!("{} {address}", attachment % 2), attachment)?;
            Some(format!("{address} was given to {} and {}", name(other), name(attachment)))
        };
        addresses(result).into_iter().filter_map(twice).collect()
    }

    /// Forgets the addresses of an attachment whose DEL begins.
    pub(super) fn forget(&self, attachment: usize) {
        if let Ok(mut given) = self.0.lock() {
            given.retain(|_, owner| *owner != attachment);
        }
    }
}

/// Returns the name of an attachment for messages.
pub(super) fn name(attachment: usize) -> String {
    format!("c{} on {}", attachment / 2, NETWORKS[attachment % 2])
}

/// Returns what an attachment lacks of what its ADD returned.
pub(super) fn missing(place: &Place, attachment: usize, result: &Value) -> Result<Vec<String>, String> {
    let mut missing = host_links(place, result)?;
    let (container, network) = (attachment / 2, attachment % 2);
    let seen = inspect(place, container, network)?;
    missing.extend(in_container(&seen, result));
    missing.extend(reservations(place, network, result));
    missing.extend(ports(place, attachment)?);
    Ok(missing)
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let address = |ip: &Value| Some(ip["address"].as_str()?.split('/').next()?.to_owned());
    ips.filter_map(address).collect()
}

fn host_links(place: &Place, result: &Value) -> Result<Vec<String>, String> {
    let file = format!("/proc/{}/net/dev", place.host.pid());
    let text = fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    let is_there = |name: &str| text.lines().any(|line| line.trim_start().starts_with(&format!("{name}:")));
    let links = result["interfaces"].as_array().into_iter().flatten();
    let names = links.filter(|link| link["sandbox"].as_str().is_none_or(str::is_empty));
    let names = names.filter_map(|link| link["name"].as_str());
    Ok(names.filter(|name| !is_there(name)).map(|name| format!("the host's link {name}")).collect())
}

/// Returns what `ip` prints about the container's interface: addresses, then routes of both families.
fn inspect(place: &Place, container: usize, network: usize) -> Result<Vec<Value>, String> {
    let netns = place.path(&format!("/run/netns/c{container}"));
    let mut child = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(["ip", "-j", "-force", "-b", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("ip: {error}"))?;
    let lines = format!("addr show dev eth{network}\nroute show table all dev eth{network}\n");
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    stdin.write_all(lines.as_bytes()).map_err(|error| format!("ip: {error}"))?;
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| format!("ip: {error}"))?;
    Ok(serde_json::Deserializer::from_slice(&output.stdout).into_iter().filter_map(Result::ok).collect())
}

fn in_container(seen: &[Value], result: &Value) -> Vec<String> {
    let items = || seen.iter().filter_map(Value::as_array).flatten();
    let has_address = |address: &str| {
        let infos = items().filter_map(|item| item["addr_info"].as_array()).flatten();
        infos.filter_map(|info| info["local"].as_str()).any(|local| local == address)
    };
    let has_route = |route: &Value| {
        let dst = match route["dst"].as_str() {
            Some("0.0.0.0/0") => ("default", true),
            Some("::/0") => ("default", false),
            other => (other.unwrap_or_default(), other.is_some_and(|dst| dst.contains('.'))),
        };
        items().any(|item| {
            item["dst"] == dst.0
                && (dst.0 != "default"
                    || item["gateway"].as_str().is_some_and(|gateway| gateway.contains('.') == dst.1))
        })
    };
    let mut missing: Vec<String> = addresses(result)
        .into_iter()
        .filter(|address| !has_address(address))
        .map(|address| format!("the address {address}"))
        .collect();
    let routes = result["routes"].as_array().into_iter().flatten();
    missing.extend(routes.filter(|route| !has_route(route)).map(|route| format!("the route {route}")));
    missing
}

fn reservations(place: &Place, network: usize, result: &Value) -> Vec<String> {
    let folder = place.path(&format!("/var/lib/cni/networks/{}", NETWORKS[network]));
    let lost = |address: &String| {
        fs::read_to_string(folder.join(address)).is_ok_and(|text| text.contains(&format!("eth{network}")))
    };
    let addresses = addresses(result).into_iter().filter(|address| !lost(address));
    addresses.map(|address| format!("the reservation of {address}")).collect()
}

/// Returns the published ports that do not lead to the container. The calling thread is on the host.
fn ports(place: &Place, attachment: usize) -> Result<Vec<String>, String> {
    let (container, network) = (attachment / 2, attachment % 2);
    let ears = place.ears(container)?;
    let Some(ears) = ears.as_ref().map(|ears| &ears[network]) else {
        return Err(format!("c{container} has no sockets"));
    };
    let port = host_port(attachment);
    let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let v6 = HOST6[network].parse::<Ipv6Addr>().map_err(|error| error.to_string())?;
    let v6 = SocketAddr::new(IpAddr::V6(v6), port);
    let mut missing = Vec::new();
    for to in [v4, v6] {
        if let Err(error) = tcp(&ears.tcp, to) {
            missing.push(format!("the published port {to}/tcp ({error})"));
        }
        if let Err(error) = udp(&ears.udp, to) {
            missing.push(format!("the published port {to}/udp ({error})"));
        }
    }
    Ok(missing)
}

fn tcp(listener: &std::net::TcpListener, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    let nonce = nonce(&stream.local_addr()?);
    stream.write_all(&nonce)?;
    loop {
        // A connection of an earlier attachment may be in the queue.
        let (mut accepted, _) = listener.accept()?;
        accepted.set_read_timeout(Some(PATIENCE))?;
        let mut read = [0; 8];
        if accepted.read_exact(&mut read).is_ok() && read == nonce {
            return Ok(());
        }
    }
}

fn udp(socket: &UdpSocket, to: SocketAddr) -> std::io::Result<()> {
    let sender = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    sender.connect(to)?;
    let nonce = nonce(&sender.local_addr()?);
    sender.send(&nonce)?;
    loop {
        let mut read = [0; 8];
        if socket.recv(&mut read)? == read.len() && read == nonce {
            return Ok(());
        }
    }
}

/// Returns bytes that no other connection of the storm sends.
fn nonce(from: &SocketAddr) -> [u8; 8] {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    (NUMBER.fetch_add(1, Ordering::Relaxed) << 16 | u64::from(from.port())).to_be_bytes()
}
