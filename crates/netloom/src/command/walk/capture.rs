//! Captures of probes on a link of their path.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use kernel::{link::Link, packet::Capture};

use super::{super::Outcome, path::Path, shot::Shot};

/// Time limit for a packet to be captured.
const CAPTURED: Duration = Duration::from_millis(60);

/// Sends the probe once more, and returns the source address with which it leaves by `link`.
pub(crate) fn source_at(path: &Path<'_>, shot: &Shot, link: &Link) -> Outcome<Option<IpAddr>> {
    let capture = path.host.netns.run(|| Capture::open(link, path.kind.protocol(path.to)))??;
    path.netns().run(|| shot.fire(path.netns(), CAPTURED))??;
    captured_source(path, shot, &capture)
}

/// Returns the source address of the probe in a capture.
pub(crate) fn captured_source(path: &Path<'_>, shot: &Shot, capture: &Capture) -> Outcome<Option<IpAddr>> {
    let mut source = None;
    arrival(capture, CAPTURED, |packet| {
        source = match shot.echo() {
            Some(echo) => echo.source_of(packet),
            None => source_of(packet, path.to, path.kind.port().unwrap_or_default()),
        };
        source.is_some()
    })?;
    Ok(source)
}

/// Waits until a packet that fits is captured. Returns false after `limit`.
pub(crate) fn arrival(
    capture: &Capture,
    limit: Duration,
    mut fits: impl FnMut(&[u8]) -> bool,
) -> Outcome<bool> {
    let started = Instant::now();
    let mut buffer = [0; 128];
    while let Some(left) = limit.checked_sub(started.elapsed()) {
        if !capture.wait(left)? {
            return Ok(false);
        }
        while let Some(packet) = capture.receive(&mut buffer)? {
            if fits(packet) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Returns the source of a captured packet, if it goes to this address and TCP or UDP port.
pub(crate) fn source_of(packet: &[u8], to: IpAddr, port: u16) -> Option<IpAddr> {
    let (source, destination) = addresses(packet)?;
    let ports = if source.is_ipv4() { usize::from(packet[0] & 0xf) * 4 } else { 40 };
    let is_it = destination == to && packet.get(ports + 2..ports + 4) == Some(&port.to_be_bytes());
    is_it.then_some(source)
}

/// Reads source and destination from a network header.
pub(super) fn addresses(network: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match network.first()? >> 4 {
        4 => Some((
            IpAddr::from(*network.get(12..)?.first_chunk::<4>()?),
            IpAddr::from(*network.get(16..)?.first_chunk::<4>()?),
        )),
        6 => Some((
            IpAddr::from(*network.get(8..)?.first_chunk::<16>()?),
            IpAddr::from(*network.get(24..)?.first_chunk::<16>()?),
        )),
        _ => None,
    }
}
