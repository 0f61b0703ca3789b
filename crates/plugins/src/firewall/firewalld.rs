//! A D-Bus client for the three calls to firewalld that add an address to a zone, remove it, and query it.
//!
//! Existing D-Bus clients need an asynchronous runtime or are no longer maintained. Sources:
//! D-Bus Specification 0.43, "Message Protocol" and "Authentication Protocol"; `firewalld.dbus(5)`.

use std::{
    io::{BufRead, BufReader, Error as IoError, ErrorKind, Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use netloom_plugin::{Code, Error};

/// A connection to firewalld over the system bus.
pub(super) struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
}

const FIREWALLD: &str = "org.fedoraproject.FirewallD1";
const ZONE: &str = "org.fedoraproject.FirewallD1.zone";
/// Time limit for an answer. firewalld answers within tens of milliseconds, or within seconds while it reloads.
const LIMIT: Duration = Duration::from_secs(20);

/// An answer to a call.
enum Answer {
    /// A method return whose first value is a boolean.
    Bool(bool),
    /// A method return with any other value.
    Other,
    /// An error with its D-Bus name and text.
    Error { name: String, text: String },
}

impl Bus {
    /// Connects to the bus. Fails if firewalld does not run.
    pub(super) fn connect() -> Result<Self, Error> {
        let mut bus = Self::open().map_err(|error| explain("connect to", &error))?;
        let owner = bus.call(
            ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetNameOwner"),
            &[FIREWALLD],
        )?;
        match owner {
            Answer::Error { .. } => Err(Error::new(
                Code::Internal,
                format!("firewalld is not running: {FIREWALLD} has no owner on the bus"),
            )
            .details(START_HINT)),
            Answer::Bool(_) | Answer::Other => Ok(bus),
        }
    }

    /// Adds an address to a zone, whose rules then apply to packets from it. Succeeds if the zone already has it.
    pub(super) fn add_source(&mut self, zone: &str, ip: IpAddr) -> Result<(), Error> {
        match self.zone("addSource", zone, ip)? {
            // All errors of firewalld have the D-Bus name `org.fedoraproject.FirewallD1.Exception`, so the zone's state decides
            // whether it already has the address.
            Answer::Error { .. } if self.has_source(zone, ip)? => Ok(()),
            Answer::Error { name, text } => Err(Error::new(
                Code::Internal,
                format!("firewalld does not add {ip} to zone {zone}: {name}: {text}"),
            )
            .details("set `firewalldZone` to a zone of firewalld; `firewall-cmd --get-zones` lists them")),
            Answer::Bool(_) | Answer::Other => Ok(()),
        }
    }

    /// Removes an address from a zone.
    pub(super) fn remove_source(&mut self, zone: &str, ip: IpAddr) -> Result<(), Error> {
        match self.zone("removeSource", zone, ip)? {
            Answer::Error { name, text } => Err(Error::new(
                Code::Internal,
                format!("firewalld does not remove {ip} from zone {zone}: {name}: {text}"),
            )
            .details(
                "remove it with `firewall-cmd --zone ZONE --remove-source ADDRESS` if it is still there",
            )),
            Answer::Bool(_) | Answer::Other => Ok(()),
        }
    }

    /// Returns whether a zone has an address.
    pub(super) fn has_source(&mut self, zone: &str, ip: IpAddr) -> Result<bool, Error> {
        Ok(matches!(self.zone("querySource", zone, ip)?, Answer::Bool(true)))
    }

    /// Calls a method of firewalld's zone interface.
    fn zone(&mut self, method: &str, zone: &str, ip: IpAddr) -> Result<Answer, Error> {
        let source = IpNet::from(ip).to_string();
        self.call((FIREWALLD, "/org/fedoraproject/FirewallD1", ZONE, method), &[zone, &source])
    }

    /// Connects to the bus and authenticates.
    fn open() -> Result<Self, IoError> {
        let stream = UnixStream::connect(socket())?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut bus = Self { stream: BufReader::new(stream), serial: 0 };
        // The bus takes the user ID from the socket's credentials. The client must send the same ID: its decimal digits as
        // hexadecimal ASCII.
        let user = std::fs::metadata("/proc/self").map(|me| std::os::unix::fs::MetadataExt::uid(&me))?;
        let user: String = user.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        bus.stream.get_mut().write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let mut line = String::new();
        bus.stream.read_line(&mut line)?;
        if !line.starts_with("OK") {
            return Err(IoError::new(ErrorKind::PermissionDenied, line.trim_end().to_owned()));
        }
        bus.stream.get_mut().write_all(b"BEGIN\r\n")?;
        let bus_itself = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello");
        bus.exchange(bus_itself, &[])?;
        Ok(bus)
    }

    fn call(&mut self, method: (&str, &str, &str, &str), arguments: &[&str]) -> Result<Answer, Error> {
        self.exchange(method, arguments).map_err(|error| explain("talk to", &error))
    }

    /// Calls a method (destination, path, interface, member) with string arguments, and reads until its answer.
    fn exchange(
        &mut self,
        (destination, path, interface, member): (&str, &str, &str, &str),
        arguments: &[&str],
    ) -> Result<Answer, IoError> {
        self.serial += 1;
        let mut body = Writer::default();
        for text in arguments {
            body.text(text);
        }
        let mut message = Writer(vec![b'l', METHOD_CALL, 0, 1]);
        message.number(length(&body.0));
        message.number(self.serial);
        let mut fields = Writer::default();
        for (code, kind, text) in
            [(1, 'o', path), (2, 's', interface), (3, 's', member), (6, 's', destination)]
        {
            fields.field(code, kind, text);
        }
        if !arguments.is_empty() {
            fields.field(8, 'g', &"s".repeat(arguments.len()));
        }
        message.number(length(&fields.0));
        message.0.extend(fields.0);
        message.pad(8);
        message.0.extend(body.0);
        self.stream.get_mut().write_all(&message.0)?;
        loop {
            if let Some(answer) = self.read()? {
                return Ok(answer);
            }
        }
    }

    /// Reads a message. Returns `None` if it does not answer the last call.
    fn read(&mut self) -> Result<Option<Answer>, IoError> {
        let broken = || IoError::new(ErrorKind::InvalidData, "the bus sent an invalid message");
        let mut fixed = [0; 16];
        self.stream.read_exact(&mut fixed)?;
        let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let (body, fields) = (word(4), word(12));
        // The specification's limits.
        if fixed[0] != b'l' || body > 1 << 27 || fields > 1 << 26 {
            return Err(broken());
        }
        let fields_length = usize::try_from(fields).map_err(|_| broken())?;
        let mut header = vec![0; fields_length.next_multiple_of(8)];
        self.stream.read_exact(&mut header)?;
        let mut content = vec![0; usize::try_from(body).map_err(|_| broken())?];
        self.stream.read_exact(&mut content)?;
        header.truncate(fields_length);
        let fields = Fields::read(&header);
        if fields.answers != Some(self.serial) {
            return Ok(None);
        }
        Ok(Some(match (fixed[1], fields.signature.as_bytes().first()) {
            (ERROR, _) => {
                Answer::Error { name: fields.error, text: read_text(&content, 0).unwrap_or_default().0 }
            }
            (_, Some(b'b')) => Answer::Bool(content.first().is_some_and(|byte| *byte != 0)),
            _ => Answer::Other,
        }))
    }
}

/// A little-endian D-Bus message under construction.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    /// Appends zeros up to a multiple of `to` bytes.
    fn pad(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: u32) {
        self.pad(4);
        self.0.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(length(text.as_bytes()));
        self.0.extend(text.bytes().chain([0]));
    }

    /// Appends a header field: its code and a variant. Each field starts at a multiple of 8.
    fn field(&mut self, code: u8, kind: char, text: &str) {
        self.pad(8);
        self.0.extend([code, 1, kind as u8, 0]);
        if kind == 'g' {
            self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            self.0.extend(text.bytes().chain([0]));
        } else {
            self.text(text);
        }
    }
}

/// The header fields of an answer.
#[derive(Default)]
struct Fields {
    /// Serial number of the call that it answers.
    answers: Option<u32>,
    /// Name of the error.
    error: String,
    /// Types of the values.
    signature: String,
}

impl Fields {
    fn read(header: &[u8]) -> Self {
        let mut fields = Self::default();
        let mut at = 0_usize;
        while let Some([code, 1, kind, 0]) = header.get(at..at + 4) {
            let place = at + 4;
            let next = match kind {
                b'u' => {
                    let number = header.get(place..place + 4).and_then(|bytes| bytes.first_chunk());
                    let Some(number) = number.map(|bytes| u32::from_le_bytes(*bytes)) else { break };
                    if *code == 5 {
                        fields.answers = Some(number);
                    }
                    place + 4
                }
                b'g' => {
                    let Some(length) = header.get(place).map(|length| usize::from(*length)) else { break };
                    let text = header.get(place + 1..place + 1 + length).unwrap_or_default();
                    fields.signature = String::from_utf8_lossy(text).into_owned();
                    place + length + 2
                }
                b's' | b'o' => {
                    let Some((text, end)) = read_text(header, place) else { break };
                    if *code == 4 {
                        fields.error = text;
                    }
                    end
                }
                _ => break,
            };
            at = next.next_multiple_of(8);
        }
        fields
    }
}

/// Reads a string and returns it with the offset behind it.
fn read_text(bytes: &[u8], at: usize) -> Option<(String, usize)> {
    let length = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
    let start = at + 4;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    let text = bytes.get(start..end)?;
    Some((String::from_utf8_lossy(text).into_owned(), end + 1))
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// Returns the path of the system bus's socket: the first `unix:path=` in `DBUS_SYSTEM_BUS_ADDRESS`, or the usual one
/// (D-Bus Specification, "Server Addresses").
fn socket() -> PathBuf {
    let addresses = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
    let paths = addresses.split(';').filter_map(|address| {
        address.strip_prefix("unix:")?.split(',').find_map(|pair| pair.strip_prefix("path="))
    });
    paths.map(PathBuf::from).next().unwrap_or_else(|| "/run/dbus/system_bus_socket".into())
}

/// What to do if firewalld cannot be reached.
const START_HINT: &str = "start firewalld, or leave `backend` out";

fn explain(doing: &str, error: &IoError) -> Error {
    let message = format!("cannot {doing} firewalld over {}: {error}", socket().display());
    Error::new(Code::Internal, message).details(START_HINT)
}

const METHOD_CALL: u8 = 1;
const ERROR: u8 = 3;
