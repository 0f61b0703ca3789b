//! `netloom lint`: forms of output, exit codes, fixes, and what is compared with the host.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::{Command, Output},
};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{NETLOOM, OURS};

const FAULTY: &str = r#"{
  // the lab
  "cniVersion": "1.0.0",
  "name": "lab",
  "plugins": [
    {"type": "bridge", "isgateway": true, "ipam": {"type": "host-local", "subnet": "10.1.0.5/16"}},
    {"type": "tuning", "mtu": "1400", "note": "é", "x": 1},
  ],
}
"#;
const MENDED: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "lab",
  "plugins": [
    {"type": "bridge", "isGateway": true, "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"}},
    {"type": "tuning", "mtu": 1400, "note": "é", "x": 1}
  ]
}
"#;

fn lint(args: &[&str]) -> Output {
    Command::new(NETLOOM).arg("lint").args(args).output().unwrap()
}

fn rules(output: &Output) -> Vec<String> {
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let findings = value["findings"].as_array().unwrap().iter();
    findings.map(|finding| finding["rule"].as_str().unwrap().to_owned()).collect()
}

/// Each form names file, line, column and rule, and the exit code says whether there are findings.
#[test]
fn forms_and_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("10-lab.conflist");
    fs::write(&path, FAULTY).unwrap();
    let path = path.to_str().unwrap();
    let printed = |form: &str| {
        let output = lint(&["--format", form, path]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = printed("text");
    assert!(text.contains("error[json-comment]: JSON has no comments"), "{text}");
    assert!(text.contains(&format!("{path}:7:52")), "columns count characters: {text}");
    assert!(text.contains("^^^^^^^^^^^") && text.contains("= help: write `isGateway`"), "{text}");
    assert!(text.ends_with("1 file: 5 errors, 3 warnings; --fix mends 6\n"), "{text}");
    let json: Value = serde_json::from_str(&printed("json")).unwrap();
    assert_eq!((&json["findings"][0]["line"], &json["findings"][0]["column"]), (&json!(2), &json!(3)));
    let sarif: Value = serde_json::from_str(&printed("sarif")).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    assert_eq!(results.len(), 8);
    assert_eq!(results[0]["locations"][0]["physicalLocation"]["region"]["startLine"], 2);
    let github = printed("github");
    assert_eq!(github.lines().count(), 8, "{github}");
    assert!(
        github.contains("line=2,endLine=2,col=3,endColumn=13,title=json-comment::JSON has no comments"),
        "{github}"
    );

    fs::write(path, MENDED.replace(", \"note\": \"é\", \"x\": 1", "")).unwrap();
    assert_eq!(lint(&[path]).status.code(), Some(0));
    assert_eq!(lint(&["/no/such/file"]).status.code(), Some(2));
    assert_eq!(lint(&["--format", "xml", path]).status.code(), Some(2));
    assert_eq!(lint(&["--explain", "no-such-rule"]).status.code(), Some(2));
    let explained = String::from_utf8(lint(&["--explain", "range-reused"]).stdout).unwrap();
    assert!(explained.starts_with("range-reused: warning, looks at all files of a folder"), "{explained}");
    assert!(lint(&["--explain", "all"]).stdout.len() > 5000);
}

/// `--fix` changes only what it names, keeps the file's mode and a symbolic link to it, and is done after one run.
#[test]
fn fixes_leave_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("real"), dir.path().join("10-lab.conflist"));
    fs::write(&path, FAULTY).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    let before = fs::metadata(&path).unwrap().ino();
    let output = lint(&["--fix", "--format", "json", link.to_str().unwrap()]);
    assert_eq!(rules(&output), ["unknown-key", "unknown-key"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), MENDED);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o640);
    assert_ne!(metadata.ino(), before, "the file is replaced at once");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    let again = lint(&["--fix", "--format", "json", link.to_str().unwrap()]);
    assert_eq!(rules(&again), ["unknown-key", "unknown-key"]);
    assert_eq!(fs::metadata(&path).unwrap().ino(), metadata.ino(), "nothing is left to fix");
}

/// Files of plugins in the folder of a network need no name and version.
#[test]
fn files_of_plugins_are_parts_of_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("10-lab.conflist");
    let folder = dir.path().join("lab");
    fs::create_dir(&folder).unwrap();
    fs::write(&list, json!({"cniVersion": "1.1.0", "name": "lab"}).to_string()).unwrap();
    let run = |path: &std::path::Path| rules(&lint(&["--format", "json", path.to_str().unwrap()]));
    assert_eq!(run(dir.path()), ["plugins-missing"]);
    fs::write(folder.join("20-tuning.conf"), json!({"type": "tuning", "mtu": 20}).to_string()).unwrap();
    assert!(run(dir.path()).is_empty());
    assert_eq!(run(&folder), ["out-of-range"]);
}

/// The network folder is compared with the host's plugins, links, routes, permissions and chains, other files are not.
#[test]
fn the_network_folder_is_compared_with_the_host() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh(
        "rm -rf /etc/cni/net.d && mkdir -p /etc/cni/net.d && ip link add up0 mtu 1400 type veth peer name up1 && ip link set up0 up && \
         ip address add 10.7.0.1/16 dev up0 && nft add table ip filter && \
         nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
    );
    let folder = host.path("/etc/cni/net.d");
    let write = |name: &str, plugins: Value| {
        let text = json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins}).to_string();
        fs::write(folder.join(format!("{name}.conflist")), text).unwrap();
    };
    let routed = |subnet: &str| {
        json!({"type": "bridge", "isDefaultGateway": true, "ipMasq": true, "bridge": format!("br-{}", &subnet[..4]),
            "ipam": {"type": "host-local", "subnet": subnet}})
    };
    write("a", json!([{"type": "flannel"}]));
    write("b", json!([{"type": "macvlan", "master": "up0", "mtu": 1500}]));
    write("c", json!([{"type": "macvlan", "master": "up9"}]));
    write("d", json!([routed("10.7.3.0/24"), {"type": "firewall"}]));
    write("e", json!([routed("10.8.0.0/24")]));
    write("f", json!([{"type": "macvlan", "ipam": {"type": "dhcp"}}]));
    fs::set_permissions(folder.join("f.conflist"), fs::Permissions::from_mode(0o666)).unwrap();
    let run = |args: &[&str]| {
        let mut command = host.command(NETLOOM);
        rules(
            &command.args(["lint", "--format", "json"]).args(args).env("CNI_PATH", &*OURS).output().unwrap(),
        )
    };
    let expected = [
        "plugin-missing",
        "mtu-above-master",
        "master-absent",
        "subnet-routed",
        "forward-dropped",
        "file-writable",
        "dhcp-daemon-absent",
    ];
    assert_eq!(run(&[]), expected);
    assert!(run(&["--no-host"]).is_empty() && run(&["--offline"]).is_empty());
    assert!(run(&["/etc/cni/net.d/a.conflist"]) == ["plugin-missing"], "a file of the network folder");
    host.sh("mkdir /run/other && cp /etc/cni/net.d/a.conflist /run/other");
    assert!(run(&["/run/other"]).is_empty());
    assert_eq!(run(&["--host", "/run/other"]), ["plugin-missing"]);
    // It only looks.
    assert_eq!(host.sh("ls /etc/cni/net.d | wc -l").trim(), "6");
}
