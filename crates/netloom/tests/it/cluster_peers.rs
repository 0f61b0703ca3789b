//! `netloom cluster` in a large cluster: a line with numbers, peers that are not well first, and in a terminal not all of them.

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    process::Command,
};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::NETLOOM;

/// Returns a status with 200 peers, of which four are not well.
fn status() -> Value {
    let peer = |number: u32| {
        let mut peer = json!({
            "name": format!("node{number:03}"), "path": "tunnel", "addresses": [format!("198.51.100.{number}")],
            "blocks": [format!("10.244.{number}.0/24")], "problem": null, "silentSeconds": null, "answers": true, "rttUs": 310,
        });
        match number {
            50 => peer["answers"] = Value::Null,
            100 => peer["answers"] = json!(false),
            150 => peer["silentSeconds"] = json!(90),
            199 => peer["path"] = Value::Null,
            _ => {}
        }
        peer
    };
    json!({
        "node": "node", "ready": true, "store": {"kind": "etcd", "connected": true},
        "peers": (0..200).map(peer).collect::<Vec<_>>(),
    })
}

#[test]
fn peers_are_counted_and_sorted_and_a_terminal_gets_the_first() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let daemon = UnixListener::bind(&socket).unwrap();
    let thread = std::thread::spawn(move || {
        for _ in 0..3 {
            let (mut stream, _) = daemon.accept().unwrap();
            stream.read_exact(&mut [0; 24]).unwrap();
            stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{}", status()).as_bytes()).unwrap();
        }
    });
    let cluster = |args: &[&str]| {
        let mut command = Command::new(NETLOOM);
        command.arg("cluster").arg("--socket").arg(&socket).args(args);
        command
    };
    let numbers =
        "200 peers: 1 with a problem, 1 silent, 1 without an answer, 1 not probed yet, 196 answering";
    let text = String::from_utf8(cluster(&[]).output().unwrap().stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], format!("  {numbers}"), "{text}");
    let names: Vec<&str> = lines[4..].iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names[..6], ["node199", "node150", "node100", "node050", "node000", "node001"], "{text}");
    assert_eq!(names.len(), 200, "{text}");

    let mut terminal = host.terminal(&cluster(&[]));
    let text = terminal.wait_for("`--all` lists them");
    assert!(text.contains(numbers) && text.contains("150 more peers: 150 answering;"), "{text}");
    assert_eq!(text.matches(" tunnel ").count() + text.matches(" none ").count(), 50, "{text}");
    assert_eq!(terminal.end().0, Some(0));
    let mut terminal = host.terminal(&cluster(&["--all"]));
    let text = terminal.wait_for("node198");
    assert!(!text.contains("more peers"), "{text}");
    assert_eq!(terminal.end().0, Some(0));
    thread.join().unwrap();
}
