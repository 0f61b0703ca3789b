//! `netloom run` and `demo` of a user who is not root, and in a user namespace.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use testkit::Host;

use crate::{
    lab::{NETLOOM, text},
    run::write_network,
};

const NOBODY: [&str; 7] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];

/// A host on which nobody may write, except to a folder below `/run`, and with the program where everybody may run it.
fn host() -> Host {
    let host = Host::new();
    host.sh("chmod 755 /run /var/lib /opt; rm -rf /etc/cni; install -d -m 700 -o 65534 -g 65534 /run/user; mkdir /run/program");
    fs::copy(NETLOOM, host.path("/run/program/netloom")).unwrap();
    fs::set_permissions(host.path("/run/program/netloom"), fs::Permissions::from_mode(0o755)).unwrap();
    host
}

fn nobody(host: &Host, words: &[&str]) -> Output {
    let mut command = Command::new(NOBODY[0]);
    command.args(&NOBODY[1..]).args(words).env("XDG_RUNTIME_DIR", "/run/user").env_remove("CI");
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    host.spawn(&mut command).wait_with_output().unwrap()
}

/// Without capabilities the error says what to do, and nothing is created.
#[test]
fn a_normal_user_is_told_what_to_do() {
    if !testkit::is_root() {
        return;
    }
    let host = host();
    write_network(&host);
    let netloom = "/run/program/netloom";
    for (words, code, hint) in [
        (&["run", "--", "true"][..], 125, "or `unshare -Urnm netloom run ...`"),
        (&["demo"], 1, "or `unshare -Urnm netloom demo ...`"),
        (&["add", "lab", "/proc/self/ns/net"], 1, ""),
    ] {
        let output = nobody(&host, &[&[netloom], words].concat());
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {shown}");
        let sudo = format!("run `sudo netloom {} ...`", words[0]);
        assert!(shown.contains(&sudo) && shown.contains(hint), "{words:?}: {shown}");
    }
    assert_eq!(host.sh("find /var/lib /run/netns /run/user -mindepth 1"), "");
}

/// In a user namespace commands run, ports are published, and two commands at a time do not share an address.
#[test]
fn a_user_namespace_is_a_host_of_its_own() {
    if !testkit::is_root() {
        return;
    }
    let host = host();
    let netloom = "/run/program/netloom";
    if !nobody(&host, &["unshare", "-Urnm", "true"]).status.success() {
        return testkit::say_skipped("users may not create namespaces here");
    }
    let script = "
        netloom=/run/program/netloom
        mkfifo /run/user/started
        exec 3<>/run/user/started
        $netloom run -p 8080:80 -- sh -c 'exec socat -d -d TCP-LISTEN:80,fork SYSTEM:\"echo served\" 2>/run/user/started' &
        grep -m1 listening <&3
        socat -u TCP:127.0.0.1:8080 -
        $netloom run -- sh -c 'socat -u TCP:10.89.64.1:8080 -; ip -4 -br addr show dev eth0'
        kill $!; wait $!; echo code $?";
    let output = nobody(&host, &["unshare", "-Urnm", "sh", "-c", script]);
    let shown = text(&output);
    assert!(shown.contains("served\nserved\neth0") && shown.contains("code 143\n"), "{shown}");
    assert!(shown.contains("10.89.64.3"), "each command has an address of its own: {shown}");
    assert!(shown.contains("are not writable, using /run/user/netloom-"), "{shown}");
    let demo = nobody(&host, &["unshare", "-Urnm", netloom, "demo"]);
    assert!(demo.status.success() && text(&demo).contains("nothing is left"), "{}", text(&demo));
    // Without the other namespaces the error says which ones to create.
    for namespaces in ["-Ur", "-Urn"] {
        let refused = text(&nobody(&host, &["unshare", namespaces, netloom, "run", "true"]));
        assert!(refused.contains("`unshare -Urnm netloom ...`"), "{namespaces}: {refused}");
    }
    assert_eq!(host.sh("ls /run/user"), "started\n", "the last command removes the folder");
    // As in a container: the kernel mounts no /sys where parts of it are hidden.
    host.sh("mount -t tmpfs none /sys/class");
    let hidden = nobody(&host, &["unshare", "-Urnm", netloom, "run", "echo", "runs"]);
    assert!(hidden.status.success() && text(&hidden).contains("runs\n"), "{}", text(&hidden));
    assert!(text(&hidden).contains("cannot mount /sys"), "{}", text(&hidden));
    assert_eq!(host.sh("find /var/lib /run/netns -mindepth 1"), "");
}
