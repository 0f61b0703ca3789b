//! The example of docs/writing-a-plugin.md, called the way a runtime calls it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Returns the example's executable: Cargo builds examples beside the folder of tests.
fn example() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    deps.ancestors().nth(2).unwrap().join("examples/myplugin1")
}

fn call(verb: &str, container: &str, file: &Path, more: &str, stdout: Stdio) -> Output {
    let conf = format!(
        r#"{{"cniVersion":"1.1.0","name":"lab","type":"myplugin1","FILE":"{}","domain":"lab.example"{more}}}"#,
        file.display()
    );
    let mut child = Command::new(example())
        .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", container), ("CNI_NETNS", "/proc/self/ns/mnt")])
        .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", "/nowhere")])
        .stdin(Stdio::piped())
        .stdout(stdout)
        .spawn()
        .unwrap();
    // The write fails at VERSION, which does not read standard input.
    drop(child.stdin.take().unwrap().write_all(conf.as_bytes()));
    child.wait_with_output().unwrap()
}

const PREV: &str =
    r#","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24"},{"address":"fd00::3/64"}]}"#;

#[test]
fn the_example_is_a_whole_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hosts");
    let text = || fs::read_to_string(&file).unwrap_or_default();
    let run = |verb, container, more: &str| call(verb, container, &file, more, Stdio::piped());
    for name in ["a", "b"] {
        let added = run("ADD", name, PREV);
        assert!(added.status.success(), "{added:?}");
        assert!(String::from_utf8_lossy(&added.stdout).contains("fd00::3/64"));
    }
    assert_eq!(text(), "a/eth0 10.1.2.3 fd00::3 a.lab.example\nb/eth0 10.1.2.3 fd00::3 b.lab.example\n");
    assert!(run("CHECK", "a", PREV).status.success());
    let missing = run("CHECK", "c", PREV);
    assert!(String::from_utf8_lossy(&missing.stdout).contains("\"code\": 100"), "{missing:?}");
    let valid = r#","cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"}]"#;
    assert!(run("GC", "", valid).status.success());
    assert!(!text().contains("a/eth0") && text().contains("b/eth0"));
    for _ in 0..2 {
        assert!(run("DEL", "b", "").status.success());
    }
    assert_eq!(text(), "");
    // ADD fails without `prevResult`. If the answer cannot be written, the line is removed again.
    assert!(!run("ADD", "a", "").status.success());
    let full = Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    assert!(!call("ADD", "a", &file, PREV, full).status.success());
    assert_eq!(text(), "");
    let version = run("VERSION", "", "");
    assert!(String::from_utf8_lossy(&version.stdout).contains("\"supportedVersions\""));
}
