//! The configuration: the printed defaults are the real ones, and errors name the wrong value.

use std::{fs, process::Command};

use crate::lab::NETLOOMD;

pub(crate) fn check(text: &str, flags: &[&str]) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("netloomd.toml");
    fs::write(&file, text).unwrap();
    let output = Command::new(NETLOOMD).arg("--config").arg(&file).args(flags).arg("check").output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_printed_default_is_valid() {
    let printed = Command::new(NETLOOMD).arg("config").output().unwrap();
    let text = String::from_utf8(printed.stdout).unwrap();
    let (ok, says) = check(&text, &["--node", "n1"]);
    assert!(ok && says.contains("network netloom in mode auto"), "{says}");
    // Every commented-out value is valid too.
    let values: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.contains(" = ") || line.starts_with("[["))
        .collect();
    assert!(values.len() > 20, "{values:?}");
    let read: Vec<&str> = values
        .iter()
        .copied()
        .filter(|line| !["etcd-c", "etcd-k", "flannel"].iter().any(|start| line.starts_with(start)))
        .collect();
    let (ok, says) = check(&read.join("\n"), &[]);
    assert!(ok && says.contains("node host1"), "{says}");
}

#[test]
fn errors_name_the_wrong_value() {
    let cases = [
        ("mode = \"fast\"", "mode"),
        ("modes = \"auto\"", "modes"),
        ("node = \"a/b\"", "`node`"),
        ("pods = [\"10.244.0.1/16\"]", "`pods`"),
        ("pods = []", "`pods`"),
        ("pods = [\"10.0.0.0/8\", \"10.1.0.0/16\"]", "overlap"),
        ("mode = \"underlay\"", "`pods`"),
        ("mode = \"underlay\"\npods = [\"10.0.0.0/8\"]\nblock4 = 8", "`block4`"),
        ("[[networks]]\nmode = \"underlay\"\npods = [\"10.0.0.0/24\"]", "no `name`"),
        ("[[networks]]\nname = \"netloom\"\npods = [\"10.0.0.0/24\"]", "two networks are named"),
        ("[[networks]]\nname = \"b\"\npods = [\"10.244.0.0/24\"]", "overlap"),
        ("[[networks]]\nname = \"b\"\npod = [\"10.1.0.0/24\"]", "pod"),
        ("block4 = 8", "`block4`"),
        ("block4 = 31", "`block4`"),
        ("vni = 0", "`vni`"),
        ("vni = 16777216", "`vni`"),
        ("port = 70000", "port"),
        ("mtu = 100", "`mtu`"),
        ("lease = 1", "`lease`"),
        ("addresses = [\"192.0.2.1\", \"192.0.2.2\"]", "`addresses`"),
        ("addresses = [\"host\"]", "addresses"),
        ("network = \"../x\"", "`network`"),
        ("store = \"etcd\"\netcd-ca = \"/nowhere\"", "`etcd-ca`"),
        ("store = \"etcd\"\netcd-user = \"x\"", "`etcd-user`"),
        ("store = \"etcd\"\netcd-endpoints = []", "`etcd-endpoints`"),
        ("flannel = \"/coreos.com/network\"", "`flannel`"),
        ("log-level = \"loud\"", "`log-level`"),
        ("log-format = \"xml\"", "log-format"),
    ];
    for (text, says) in cases {
        let (ok, said) = check(text, &[]);
        assert!(!ok && said.contains(says), "{text}: {said}");
    }
    // A flag overrides the file.
    let (ok, said) = check("mode = \"overlay\"", &["--node", "n1", "--mode", "routing"]);
    assert!(ok && said.contains("in mode routing"), "{said}");
}

/// Escape sequences, line breaks and bidirectional marks of a file or an argument reach the terminal as text.
#[test]
fn errors_are_text() {
    let hostile = r#""x\u001b[2J\nok \u202e""#;
    for (text, flags) in [
        (format!("node = {hostile}"), &[][..]),
        (format!("log-level = {hostile}"), &[]),
        (format!("[[networks]]\nname = {hostile}\npods = [\"10.1.0.0/24\"]"), &[]),
        ("wrong = 'y\u{202e}\u{9b}'".to_owned(), &[]),
        (String::new(), &["--mode", "x\u{202e}y\u{9b}"]),
    ] {
        let (ok, said) = check(&text, flags);
        assert!(!ok && said.len() > 20, "{text}: {said}");
        let is_unsafe = |char: char| char != '\n' && (char.is_control() || char == '\u{202e}');
        assert!(!said.contains(is_unsafe), "{text}: {said:?}");
        assert!(!said.lines().any(|line| line.starts_with("ok")), "{text}: {said:?}");
    }
}
