//! The conformance vectors of a runtime. The plugins are shell scripts that log every call.
//!
//! The comment of each test lists its requirements (R) and vectors (V); `cargo xtask spec` reads them.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use netloom_runtime::{
    Container, Error, Runtime, cache, load,
    types::{Attachment, NetworkList, Object, SpecVersion, json},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with plugins, a state and a log of calls.
struct Lab {
    dir: TempDir,
    runtime: Runtime,
}

/// Logs the call, prints the files `NAME.VERB.err` and `NAME.VERB`, and fails if `NAME.VERB.fails` exists.
const SCRIPT: &str = r#"#!/bin/sh
name=${0##*/}; dir=${0%/bin/*}
input=$(cat)
printf '%s\n' "$CNI_COMMAND $name $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS $CNI_PATH $input" >>"$dir/log"
answer="$dir/$name.$CNI_COMMAND"
[ -e "$answer.err" ] && cat "$answer.err" >&2
[ -e "$answer" ] && cat "$answer"
[ -e "$answer.fails" ] && exit 1
exit 0
"#;

impl Lab {
    fn new(plugins: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        for plugin in plugins {
            executable(&dir.path().join("bin").join(plugin), SCRIPT);
        }
        let mut runtime = Runtime::new(vec![dir.path().join("bin")]);
        runtime.state = dir.path().join("state");
        runtime.timeout = Some(Duration::from_secs(20));
        let lab = Self { dir, runtime };
        for plugin in plugins {
            lab.answers(plugin, "ADD", r#"{"cniVersion":"1.1.0"}"#);
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn answers(&self, plugin: &str, verb: &str, text: &str) {
        fs::write(self.path(&format!("{plugin}.{verb}")), text).unwrap();
    }

    fn fails(&self, plugin: &str, verb: &str, stdout: &str, stderr: &str) {
        self.answers(plugin, verb, stdout);
        self.answers(plugin, &format!("{verb}.fails"), "");
        self.answers(plugin, &format!("{verb}.err"), stderr);
    }

    fn mend(&self, plugin: &str, verb: &str) {
        for ending in ["", ".fails", ".err"] {
            let _ = fs::remove_file(self.path(&format!("{plugin}.{verb}{ending}")));
        }
    }

    /// Returns the calls so far, verb and plugin with the plugin's input, and clears the log.
    fn calls(&self) -> Vec<(String, Value)> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        let _ = fs::remove_file(self.path("log"));
        text.lines()
            .map(|line| {
                let input = line.find('{').map_or("null", |at| &line[at..]);
                let head: Vec<&str> = line.split(' ').take(2).collect();
                (head.join(" "), serde_json::from_str(input).expect(line))
            })
            .collect()
    }

    fn verbs(&self) -> Vec<String> {
        self.calls().into_iter().map(|(call, _)| call).collect()
    }

    fn cache_file(&self) -> PathBuf {
        self.path("state/results/some-list-some-container-id-eth0")
    }
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn list_with(version: &str, more: &str, plugins: &[&str]) -> NetworkList {
    let plugins: Vec<String> = plugins.iter().map(|kind| format!(r#"{{"type":"{kind}"}}"#)).collect();
    let text =
        format!(r#"{{"name":"some-list","cniVersion":"{version}"{more},"plugins":[{}]}}"#, plugins.join(","));
    NetworkList::parse(text.as_bytes()).unwrap()
}

fn list(plugins: &[&str]) -> NetworkList {
    list_with("1.1.0", "", plugins)
}

fn container() -> Container {
    Container::new("some-container-id", "/some/netns/path")
}

fn attachment() -> Attachment {
    Attachment { container_id: "some-container-id".into(), ifname: "eth0".into() }
}

/// R33, R66, R74, R75, R76, R99, V40: ADD in order, each plugin with the result of the previous one.
#[test]
fn add_runs_the_plugins_in_order() {
    let lab = Lab::new(&["p1", "p2", "p3"]);
    lab.answers("p1", "ADD", r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24"}]}"#);
    lab.answers("p2", "ADD", r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24"}]}"#);
    // An answer in another version is converted for the next plugin and for the caller.
    lab.answers(
        "p3",
        "ADD",
        r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.2.3/24"}],"dns":{"nameservers":["1.2.3.4"]}}"#,
    );
    let mut container = container();
    container.args = vec![("FOO".into(), "BAR".into())];
    let list = list(&["p1", "p2", "p3"]);
    let result = lab.runtime.add(&list, &container).unwrap();
    assert_eq!(
        result.to_value(),
        json!({"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24"}],"dns":{"nameservers":["1.2.3.4"]}})
    );
    let log = fs::read_to_string(lab.path("log")).unwrap();
    let bin = lab.path("bin").display().to_string();
    for line in log.lines() {
        assert!(
            line.contains(&format!(" some-container-id eth0 /some/netns/path FOO=BAR {bin} {{")),
            "{line}"
        );
    }
    let calls = lab.calls();
    assert_eq!(
        calls.iter().map(|(call, _)| call.as_str()).collect::<Vec<_>>(),
        ["ADD p1", "ADD p2", "ADD p3"]
    );
    assert_eq!(calls[0].1.get("prevResult"), None);
    assert_eq!(calls[2].1["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
    assert_eq!((&calls[0].1["name"], &calls[0].1["cniVersion"]), (&json!("some-list"), &json!("1.1.0")));
    // A second ADD without DEL is refused before anything runs.
    assert!(matches!(lab.runtime.add(&list, &container), Err(Error::Attached { .. })));
    assert!(lab.calls().is_empty());
}

/// R70, R100, V41: if a later plugin fails, DEL is called in reverse order and nothing is cached.
#[test]
fn failed_add_is_taken_back() {
    let lab = Lab::new(&["p1", "p2", "p3"]);
    lab.fails("p2", "ADD", r#"{"code":123,"msg":"plugin error: banana"}"#, "");
    let error = lab.runtime.add(&list(&["p1", "p2", "p3"]), &container()).unwrap_err();
    assert_eq!(error.to_string(), r#"plugin type="p2" failed (add): plugin error: banana"#);
    assert_eq!(error.plugin_error().unwrap().code.number(), 123);
    assert_eq!(lab.verbs(), ["ADD p1", "ADD p2", "DEL p2", "DEL p1"]);
    assert!(!lab.cache_file().exists());
    // The interface may belong to another attachment, so no DEL follows the failure of the first plugin.
    lab.fails("p1", "ADD", r#"{"code":4,"msg":"eth0 already exists"}"#, "");
    assert!(lab.runtime.add(&list(&["p1", "p2"]), &container()).is_err());
    assert_eq!(lab.verbs(), ["ADD p1"]);
}

/// R38, R71, R72, R77, R98, V44: DEL in reverse order with the result of the ADD; it can be repeated.
#[test]
fn del_runs_in_reverse() {
    let lab = Lab::new(&["p1", "p2"]);
    lab.answers("p2", "ADD", r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24"}]}"#);
    let list = list(&["p1", "p2"]);
    lab.runtime.add(&list, &container()).unwrap();
    lab.calls();
    lab.runtime.del(&list, &container()).unwrap();
    let calls = lab.calls();
    assert_eq!(calls.iter().map(|(call, _)| call.as_str()).collect::<Vec<_>>(), ["DEL p2", "DEL p1"]);
    for (_, input) in &calls {
        assert_eq!(input["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
    }
    assert!(!lab.cache_file().exists());
    lab.runtime.del(&list, &container()).unwrap();
    assert_eq!(lab.calls()[0].1.get("prevResult"), None);
}

/// R77, V41: DEL stops at the first error and keeps the cache file for the next call.
#[test]
fn del_stops_at_the_first_error() {
    let lab = Lab::new(&["p1", "p2"]);
    let list = list(&["p1", "p2"]);
    lab.runtime.add(&list, &container()).unwrap();
    lab.fails("p2", "DEL", r#"{"code":11,"msg":"later"}"#, "");
    let error = lab.runtime.del(&list, &container()).unwrap_err();
    assert_eq!(error.to_string(), r#"plugin type="p2" failed (delete): later"#);
    assert_eq!(lab.verbs(), ["ADD p1", "ADD p2", "DEL p2"]);
    lab.mend("p2", "DEL");
    lab.runtime.del(&list, &container()).unwrap();
    assert_eq!(lab.calls()[1].1["prevResult"]["cniVersion"], "1.1.0");
}

/// R47, R48, R49, R78, V42: CHECK in order, with the result of the ADD; never if `disableCheck` is true.
#[test]
fn check_runs_in_order() {
    let lab = Lab::new(&["p1", "p2"]);
    let with = list(&["p1", "p2"]);
    lab.runtime.add(&with, &container()).unwrap();
    lab.calls();
    lab.runtime.check(&with, &container()).unwrap();
    let calls = lab.calls();
    assert_eq!(calls.iter().map(|(call, _)| call.as_str()).collect::<Vec<_>>(), ["CHECK p1", "CHECK p2"]);
    assert_eq!(calls[0].1["prevResult"], calls[1].1["prevResult"]);
    lab.fails("p1", "CHECK", r#"{"code":100,"msg":"gone"}"#, "");
    assert!(lab.runtime.check(&with, &container()).is_err());
    assert_eq!(lab.verbs(), ["CHECK p1"]);
    lab.runtime.check(&list_with("1.1.0", r#","disableCheck":true"#, &["p1"]), &container()).unwrap();
    assert!(lab.calls().is_empty());
    let old = lab.runtime.check(&list_with("0.3.1", "", &["p1"]), &container()).unwrap_err();
    assert_eq!(old.to_string(), r#"configuration version "0.3.1" does not support the CHECK command"#);
}

/// V43: with a damaged cache file, DEL succeeds and CHECK reports it.
#[test]
fn damaged_memory() {
    let lab = Lab::new(&["p1"]);
    let network = list_with("0.4.0", "", &["p1"]);
    for (content, reason) in [
        ("adfadsfasdfasfdsafaf", "decoding version from network config: "),
        ("", "decoding version from network config: "),
        (r#"{"cniVersion":"0.4567.0"}"#, "unsupported CNI result version `0.4567.0`"),
    ] {
        fs::create_dir_all(lab.path("state/results")).unwrap();
        fs::write(lab.cache_file(), content).unwrap();
        let error = lab.runtime.check(&network, &container()).unwrap_err().to_string();
        assert!(error.starts_with(r#"failed to get network "some-list" cached result: "#), "{error}");
        assert!(error.contains(reason), "{error}");
        assert!(lab.calls().is_empty());
        lab.runtime.del(&network, &container()).unwrap();
        assert_eq!(lab.calls()[0].1.get("prevResult"), None);
        assert!(!lab.cache_file().exists(), "{content}");
    }
    // Versions before 0.4.0 do not send `prevResult` at DEL.
    let old = list_with("0.3.1", "", &["p1"]);
    lab.answers("p1", "ADD", r#"{"cniVersion":"0.3.1"}"#);
    lab.runtime.add(&old, &container()).unwrap();
    lab.calls();
    lab.runtime.del(&old, &container()).unwrap();
    assert_eq!(lab.calls()[0].1.get("prevResult"), None);
}

/// R8, R60, R61, R79, V45: GC calls DEL for stale cached attachments, then GC of the plugins with the valid ones.
#[test]
fn gc() {
    let lab = Lab::new(&["p1", "p2"]);
    let network = list(&["p1", "p2"]);
    lab.runtime.add(&network, &container()).unwrap();
    lab.calls();
    lab.runtime.gc_except(&list_with("1.1.0", r#","disableGC":true"#, &["p1"]), &[]).unwrap();
    assert!(lab.calls().is_empty());
    lab.runtime.gc_except(&network, &[attachment()]).unwrap();
    let calls = lab.calls();
    assert_eq!(
        calls[0].1["cni.dev/valid-attachments"],
        json!([{"containerID":"some-container-id","ifname":"eth0"}])
    );
    assert_eq!(calls.iter().map(|(call, _)| call.as_str()).collect::<Vec<_>>(), ["GC p1", "GC p2"]);
    // All plugins are called despite an error.
    lab.fails("p1", "GC", r#"{"code":5,"msg":"first"}"#, "");
    lab.fails("p2", "GC", r#"{"code":5,"msg":"second"}"#, "");
    let error = lab.runtime.gc_except(&network, &[]).unwrap_err().to_string();
    assert!(error.contains("first") && error.contains("second"), "{error}");
    let calls = lab.calls();
    let verbs: Vec<&str> = calls.iter().map(|(call, _)| call.as_str()).collect();
    assert_eq!(verbs, ["DEL p2", "DEL p1", "GC p1", "GC p2"]);
    assert_eq!(calls[2].1["cni.dev/valid-attachments"], json!([]));
    assert!(!lab.cache_file().exists());
}

/// GC calls DEL with the configuration of the ADD, and does not touch other networks.
#[test]
fn gc_deletes_as_it_was_added() {
    let lab = Lab::new(&["p1", "p2"]);
    let mut container = container();
    let old = NetworkList::parse(
        br#"{"cniVersion":"1.1.0","name":"some-list","plugins":[{"type":"p1","was":"then","capabilities":{"mac":true}}]}"#,
    )
    .unwrap();
    container.capability_args = json::parse_object(br#"{"mac":"02:00:00:00:00:01"}"#).unwrap();
    lab.runtime.add(&old, &container).unwrap();
    let mut other = list(&["p2"]);
    other.name = "other-list".into();
    lab.runtime.add(&other, &Container::new("elsewhere", "/x")).unwrap();
    lab.calls();
    lab.runtime.gc_except(&list(&["p2"]), &[]).unwrap();
    let calls = lab.calls();
    assert_eq!(calls[0].0, "DEL p1");
    assert_eq!(
        (&calls[0].1["was"], &calls[0].1["runtimeConfig"]["mac"]),
        (&json!("then"), &json!("02:00:00:00:00:01"))
    );
    assert_eq!(calls[1].0, "GC p2");
    assert_eq!(lab.runtime.attachments().unwrap().len(), 1);
}

/// R51, R53, R54, R80, V46: STATUS stops at the first plugin that is not ready, with its code.
#[test]
fn status() {
    let lab = Lab::new(&["p1", "p2", "p3"]);
    lab.fails("p2", "STATUS", r#"{"code":50,"msg":"not ready"}"#, "");
    let error = lab.runtime.status(&list(&["p1", "p2", "p3"])).unwrap_err();
    assert_eq!(error.plugin_error().unwrap().code.number(), 50);
    assert_eq!(lab.verbs(), ["STATUS p1", "STATUS p2"]);
    lab.runtime.status(&list_with("1.0.0", "", &["p2"])).unwrap();
    assert!(lab.calls().is_empty());
    // Other verbs do not depend on the answer to STATUS.
    lab.runtime.add(&list(&["p1", "p2"]), &container()).unwrap();
}

/// V47: validation returns all errors, or the capabilities.
#[test]
fn validate() {
    let lab = Lab::new(&["p1", "p2"]);
    let info = r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","1.1.0"]}"#;
    lab.answers("p1", "VERSION", info);
    lab.answers("p2", "VERSION", info);
    let text = br#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"p1","capabilities":{"portMappings":true}},{"type":"p2","capabilities":{"otherCapability":true,"portMappings":true,"no":false}}]}"#;
    let capabilities = lab.runtime.validate(&NetworkList::parse(text).unwrap()).unwrap();
    assert_eq!(capabilities, ["otherCapability", "portMappings"]);
    let missing = lab.runtime.validate(&list(&["nope"])).unwrap_err().to_string();
    assert_eq!(missing, format!("failed to find plugin \"nope\" in path [{}]", lab.path("bin").display()));
    let old = lab.runtime.validate(&list_with("0.3.1", "", &["p1", "p2"])).unwrap_err().to_string();
    assert_eq!(old.matches("does not support config version \"0.3.1\"").count(), 2, "{old}");
}

/// V48: a cache file needs three names. R62 of runtimes: names are checked before a plugin is called.
#[test]
fn names_are_checked_before_anything_runs() {
    let lab = Lab::new(&["p1"]);
    let error = cache::path(Path::new("/s"), "", "some-container-id", "eth0").unwrap_err().to_string();
    assert!(
        error.ends_with(r#"cache file path requires network name (""), container ID ("some-container-id"), and interface name ("eth0")"#),
        "{error}"
    );
    let network = list(&["p1"]);
    let mut bad_name = network.clone();
    bad_name.name = "../x".into();
    let cases = [
        (&network, Container::new("../../x", "/n"), "containerID"),
        (&network, Container { ifname: "../e".into(), ..container() }, "interface name"),
        (&bad_name, container(), "network name"),
    ];
    for (network, container, what) in cases {
        for outcome in [
            lab.runtime.add(network, &container).map(drop),
            lab.runtime.check(network, &container),
            lab.runtime.del(network, &container),
        ] {
            assert!(outcome.unwrap_err().to_string().contains(what));
        }
    }
    assert!(lab.calls().is_empty());
}

/// R9, R12, R13, V31, V35, V36: lookup of networks, and plugins in separate files.
#[test]
fn loading() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let load = |name: &str| load::network(dir.path(), name);
    assert_eq!(
        load::network(Path::new("/no/such/dir"), "n").unwrap_err().to_string(),
        "no net configurations found in /no/such/dir"
    );
    write("49-some.conf", r#"{"name":"some-list","cniVersion":"0.3.1","type":"single"}"#);
    assert_eq!(load("some-list").unwrap().plugins[0].kind(), "single");
    write(
        "50-some.conflist",
        r#"{"name":"some-list","cniVersion":"1.1.0","plugins":[{"type":"host-local"}]}"#,
    );
    assert_eq!(load("some-list").unwrap().plugins[0].kind(), "host-local");
    assert_eq!(
        load("nope").unwrap_err().to_string(),
        format!("no net configuration with name \"nope\" in {}", dir.path().display())
    );
    // Plugins in files follow the inlined ones, in order of file names.
    write("some-list/20-b.conf", r#"{"type":"bandwidth"}"#);
    write("some-list/10-a.conf", r#"{"type":"tuning"}"#);
    write("some-list/30-c.json", r#"{"type":"ignored"}"#);
    let kinds = |list: &NetworkList| list.plugins.iter().map(|p| p.kind().to_owned()).collect::<Vec<_>>();
    let list = load("some-list").unwrap();
    assert_eq!(kinds(&list), ["host-local", "tuning", "bandwidth"]);
    // The cached configuration contains all plugins.
    assert_eq!(kinds(&NetworkList::parse(&list.bytes).unwrap()), kinds(&list));
    write(
        "50-some.conflist",
        r#"{"name":"some-list","cniVersion":"1.1.0","loadOnlyInlinedPlugins":true,"plugins":[{"type":"host-local"}]}"#,
    );
    assert_eq!(kinds(&load("some-list").unwrap()), ["host-local"]);
    write("60-files.conflist", r#"{"name":"files","cniVersion":"1.1.0"}"#);
    let none = load("files").unwrap_err().to_string();
    assert_eq!(none, "no plugin configs found for network \"files\"");
    write("files/x.conf", r#"{"type":"bridge"}"#);
    assert_eq!(kinds(&load("files").unwrap()), ["bridge"]);
    // An invalid list does not hide the others. The error names it if the network is not found.
    write("10-broken.conflist", "{");
    assert!(load("some-list").is_ok());
    assert!(load("nope").unwrap_err().to_string().contains("10-broken.conflist"));
    // Subfolders are not searched.
    write("below/70-hidden.conflist", r#"{"name":"hidden","plugins":[{"type":"t"}]}"#);
    assert!(load("hidden").is_err());
    write("some-list/40-wrong.conf", r#"{"name":"no type"}"#);
    write("50-some.conflist", r#"{"name":"some-list","plugins":[{"type":"host-local"}]}"#);
    assert!(load("some-list").unwrap_err().to_string().contains("missing 'type'"));
}

/// V50, V51: the error for each output of a failed plugin.
#[test]
fn outputs_of_plugins() {
    let lab = Lab::new(&["p1"]);
    let add = || lab.runtime.add(&list_with("0.3.1", "", &["p1"]), &container());
    let error = |stdout: &str, stderr: &str| {
        lab.fails("p1", "ADD", stdout, stderr);
        let error = add().unwrap_err().to_string();
        lab.mend("p1", "ADD");
        error.replace(r#"plugin type="p1" failed (add): "#, "")
    };
    assert_eq!(error("", ""), "netplugin failed with no error message: exit status 1");
    assert_eq!(error("", "some stderr message"), "netplugin failed: \"some stderr message\": exit status 1");
    assert_eq!(error(r#"{"code":7,"msg":"bad"}"#, ""), "bad");
    // The details contain the plugin's log too.
    assert_eq!(error(r#"{"code":7,"msg":"bad","details":"very"}"#, "log"), "bad; very; it logged \"log\"");
    assert!(
        error("gibberish", "")
            .starts_with("netplugin failed but error parsing its diagnostic message \"gibberish\"")
    );
    // A result that a failing plugin printed does not become an error without a message.
    assert!(error(r#"{"cniVersion":"1.1.0","ips":[]}"#, "").contains("error parsing its diagnostic message"));
    for (printed, expected) in [
        (r#"{"ips":[{"version":"4","address":"10.0.0.2/24"}]}"#, "0.3.1"),
        (r#"{"cniVersion":"","ips":[]}"#, "0.3.1"),
        ("null", "0.3.1"),
    ] {
        lab.answers("p1", "ADD", printed);
        let result = add().unwrap();
        assert_eq!(result.version().as_str(), expected, "{printed}");
        lab.runtime.del(&list_with("0.3.1", "", &["p1"]), &container()).unwrap();
    }
    for none in ["", "[]", "5", "{", "text"] {
        lab.answers("p1", "ADD", none);
        lab.calls();
        assert!(add().unwrap_err().to_string().contains("its answer is not a result"), "{none:?}");
        // The plugin exited with success, so DEL is called.
        assert_eq!(lab.verbs(), ["ADD p1", "DEL p1"]);
    }
}

/// V56, V57: a plugin of 0.1.0 with a configuration without version.
#[test]
fn the_oldest_plugins() {
    let lab = Lab::new(&["p1"]);
    lab.answers(
        "p1",
        "ADD",
        r#"{"ip4":{"ip":"10.1.2.3/24","gateway":"10.1.2.1","routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"}]},"ip6":{"ip":"abcd:1234:ffff::cdde/64"},"dns":{"nameservers":["8.8.8.8"],"domain":"example.com"}}"#,
    );
    for version in ["", "0.1.0"] {
        let network = list_with(version, "", &["p1"]);
        let result = lab.runtime.add(&network, &container()).unwrap();
        assert_eq!(result.version(), SpecVersion::V0_1_0);
        let current = result.into_current();
        assert_eq!(current.ips.len(), 2);
        assert_eq!(current.routes[0].gw.unwrap().to_string(), "10.1.0.1");
        lab.runtime.del(&network, &container()).unwrap();
    }
}

/// V55: a plugin without VERSION; the variables of that call are `dummy`.
#[test]
fn version_of_old_plugins() {
    let lab = Lab::new(&["p1"]);
    lab.fails("p1", "VERSION", r#"{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}"#, "");
    assert_eq!(lab.runtime.version("p1").unwrap().supported_versions, ["0.1.0"]);
    let log = fs::read_to_string(lab.path("log")).unwrap();
    assert!(log.starts_with("VERSION p1  dummy dummy  dummy {"), "{log}");
}

/// V52: a plugin that exceeds the time limit is terminated with its children.
#[test]
fn timeouts_end_the_whole_group() {
    let mut lab = Lab::new(&["p1"]);
    executable(
        &lab.path("bin/p1"),
        "#!/bin/sh\ntrap 'echo ended >${0%/bin/*}/term; exit 1' TERM\nsleep 60 &\necho $! >${0%/bin/*}/child\nwait\n",
    );
    // Long enough for a shell on a busy machine to reach its `wait`.
    lab.runtime.timeout = Some(Duration::from_secs(3));
    let started = Instant::now();
    let error = lab.runtime.add(&list(&["p1"]), &container()).unwrap_err().to_string();
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(error.contains("did not end within 3s"), "{error}");
    // The plugin received SIGTERM and could clean up.
    assert!(lab.path("term").exists());
    let child = fs::read_to_string(lab.path("child")).unwrap();
    // The signal was sent before `add` returned; on a busy machine the process takes it a little later.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let state = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") {
            break;
        }
        assert!(Instant::now() < deadline, "{state}");
        std::thread::yield_now();
    }
}

/// The caller does not wait for a plugin's child that keeps the pipes open.
#[test]
fn left_behind_children_do_not_block() {
    let lab = Lab::new(&["p1"]);
    executable(
        &lab.path("bin/p1"),
        "#!/bin/sh\nsleep 30 &\necho $! >${0%/bin/*}/child\necho '{\"cniVersion\":\"1.1.0\"}'\n",
    );
    let started = Instant::now();
    lab.runtime.add(&list(&["p1"]), &container()).unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    let child: i32 = fs::read_to_string(lab.path("child")).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(child).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

/// The caller waits for a binary that is being replaced. A binary that stays open for writing is an error.
#[test]
fn busy_binaries_are_waited_for() {
    let lab = Lab::new(&["p1"]);
    let binary = lab.path("bin/p1");
    fs::copy("/bin/true", &binary).unwrap();
    let writer = fs::OpenOptions::new().append(true).open(&binary).unwrap();
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(writer);
    });
    lab.runtime.status(&list(&["p1"])).unwrap();
    closer.join().unwrap();
    let _writer = fs::OpenOptions::new().append(true).open(&binary).unwrap();
    let mut impatient = lab.runtime.clone();
    impatient.timeout = Some(Duration::from_millis(200));
    let error = impatient.status(&list(&["p1"])).unwrap_err().to_string();
    assert!(error.contains("Text file busy"), "{error}");
}

/// R67, R69: one operation at a time for a container, in parallel with those of others. R68: GC excludes other operations on its
/// network.
#[test]
fn operations_are_ordered() {
    let lab = Lab::new(&["p1"]);
    // The plugin logs its begin and end, so overlapping calls are visible.
    executable(
        &lab.path("bin/p1"),
        "#!/bin/sh\ndir=${0%/bin/*}\ncat >/dev/null\nwho=${CNI_CONTAINERID:-gc}\necho \"begin $who\" >>$dir/order\nsleep 0.1\necho \"end $who\" >>$dir/order\necho '{\"cniVersion\":\"1.1.0\"}'\n",
    );
    let network = list(&["p1"]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| lab.runtime.del(&network, &Container::new("same", "/n")).unwrap());
        }
        scope.spawn(|| lab.runtime.gc_except(&network, &[]).unwrap());
        scope.spawn(|| lab.runtime.del(&network, &Container::new("other", "/n")).unwrap());
    });
    let order = fs::read_to_string(lab.path("order")).unwrap();
    let mut running: Vec<&str> = Vec::new();
    for line in order.lines() {
        let (what, who) = line.split_once(' ').unwrap();
        if what == "begin" {
            assert!(!running.contains(&who), "{order}");
            assert!(who != "gc" || running.is_empty(), "{order}");
            assert!(!running.contains(&"gc"), "{order}");
            running.push(who);
        } else {
            running.retain(|other| *other != who);
        }
    }
    assert_eq!(order.lines().count(), 10);
    // No lock file of a container remains.
    let locks = fs::read_dir(lab.path("state/netloom/locks")).unwrap().map(|lock| lock.unwrap().file_name());
    let mut locks: Vec<_> = locks.collect();
    locks.sort();
    assert_eq!(locks, ["network-some-list", "turn-network-some-list"]);
}

/// V48, V49: the cache file has libcni's format, and a file of libcni can be read.
#[test]
fn memory_is_libcnis() {
    let lab = Lab::new(&["p1"]);
    let network = list(&["p1"]);
    let mut container = container();
    container.args = vec![("A".into(), "B".into())];
    container.capability_args = json::parse_object(br#"{"mac":"x"}"#).unwrap();
    lab.runtime.add(&network, &container).unwrap();
    let text = fs::read_to_string(lab.cache_file()).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    use base64::{Engine, prelude::BASE64_STANDARD};
    assert_eq!(
        value,
        json!({"kind":"cniCacheV1","containerId":"some-container-id","config":BASE64_STANDARD.encode(&network.bytes),
            "ifName":"eth0","networkName":"some-list","netns":"/some/netns/path","cniArgs":[["A","B"]],
            "capabilityArgs":{"mac":"x"},"result":{"cniVersion":"1.1.0"}})
    );
    assert_eq!(fs::metadata(lab.cache_file()).unwrap().permissions().mode() & 0o777, 0o600);
    let entries = lab.runtime.attachments().unwrap();
    assert_eq!((entries[0].network.as_str(), entries[0].args.len()), ("some-list", 1));
    lab.calls();
    // DEL passes the arguments of the ADD if the caller passes none.
    lab.runtime.del(&network, &self::container()).unwrap();
    let log = fs::read_to_string(lab.path("log")).unwrap();
    assert!(log.contains(" A=B "), "{log}");
    lab.calls();
    // A bare result, the format of libcni before 0.8.
    fs::write(lab.cache_file(), r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}]}"#)
        .unwrap();
    lab.runtime.del(&network, &self::container()).unwrap();
    assert_eq!(
        lab.calls()[0].1["prevResult"],
        json!({"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}]})
    );
}

/// Names with dashes can lead to the same file name: the cache file of another attachment is not used.
#[test]
fn memory_of_another_is_not_used() {
    let lab = Lab::new(&["p1"]);
    let mut ab = list(&["p1"]);
    ab.name = "a-b".into();
    let mut a = list(&["p1"]);
    a.name = "a".into();
    lab.runtime.add(&ab, &Container::new("c", "/n")).unwrap();
    lab.calls();
    lab.runtime.del(&a, &Container::new("b-c", "/n")).unwrap();
    assert_eq!(lab.calls()[0].1.get("prevResult"), None);
    assert_eq!(lab.runtime.attachments().unwrap().len(), 1);
}

/// V53: lookup of plugins.
#[test]
fn finding_plugins() {
    let lab = Lab::new(&["p1"]);
    let find =
        |name: &str, paths: &[PathBuf]| netloom_invoke::find_in_path(name, paths).map_err(|e| e.to_string());
    let bin = [lab.path("bin")];
    assert_eq!(find("p1", &bin), Ok(lab.path("bin/p1")));
    assert!(find("p1", &[]).unwrap_err().starts_with("no paths provided"));
    assert_eq!(find("", &bin), Err("no plugin name provided".into()));
    assert_eq!(find("../pluginname", &bin), Err("invalid plugin name: ../pluginname".into()));
    assert_eq!(
        find("nope", &bin),
        Err(format!("failed to find plugin \"nope\" in path [{}]", bin[0].display()))
    );
    // A file that is not executable does not hide one that is. The error names it if there is no other.
    let first = lab.path("first");
    fs::create_dir(&first).unwrap();
    fs::write(first.join("p1"), "").unwrap();
    assert_eq!(find("p1", &[first.clone(), bin[0].clone()]), Ok(lab.path("bin/p1")));
    assert!(find("p1", &[first]).unwrap_err().contains("not executable"));
    let missing = lab.runtime.add(&list(&["nope"]), &container()).unwrap_err();
    assert!(matches!(missing, Error::Find(_)));
}

/// Keys of the configuration reach the plugin unchanged.
#[test]
fn configuration_reaches_the_plugin_whole() {
    let lab = Lab::new(&["p1"]);
    let text = br#"{"cniVersion":"1.1.0","name":"some-list","plugins":[{"type":"p1","z":{"n":12345678901234567890123},"a":[1.0,1e3]}]}"#;
    lab.runtime.add(&NetworkList::parse(text).unwrap(), &container()).unwrap();
    let log = fs::read_to_string(lab.path("log")).unwrap();
    assert!(log.contains(r#""z":{"n":12345678901234567890123},"a":[1.0,1e"#), "{log}");
    let _: Object = json::parse_object(log[log.find('{').unwrap()..].trim().as_bytes()).unwrap();
}

/// GC in parallel with ADD and DEL: an added attachment keeps its objects, even if GC began before the ADD. The plugin keeps a
/// file for each container, as host-local does, and its GC removes the files that are not listed.
#[test]
fn gc_takes_nothing_from_who_was_just_added() {
    const WORKERS: usize = 8;
    const ROUNDS: usize = 25;
    let lab = Lab::new(&["p1"]);
    fs::create_dir(lab.path("owned")).unwrap();
    executable(
        &lab.path("bin/p1"),
        "#!/bin/sh\ndir=${0%/bin/*}/owned\nconf=$(cat)\ncase $CNI_COMMAND in\nADD) : >$dir/$CNI_CONTAINERID;;\n\
         DEL) rm -f $dir/$CNI_CONTAINERID;;\nGC) for file in $dir/*; do\n\
         case $conf in *\\\"${file##*/}\\\"*) ;; *) rm -f $file;; esac; done;;\nesac\necho '{\"cniVersion\":\"1.1.0\"}'\n",
    );
    let network = list(&["p1"]);
    let working = std::sync::atomic::AtomicUsize::new(WORKERS);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (lab, network, working) = (&lab, &network, &working);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let id = format!("c{worker}-{round}");
                    let container = Container::new(&id, "/some/netns");
                    lab.runtime.add(network, &container).unwrap();
                    // At least one of two GCs begins after the ADD.
                    for _ in 0..2 {
                        lab.runtime.gc(network, |_| true).unwrap();
                        assert!(lab.path("owned").join(&id).exists(), "GC removed the file of {id}");
                    }
                    lab.runtime.check(network, &container).unwrap();
                    lab.runtime.del(network, &container).unwrap();
                }
                working.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            });
        }
        while working.load(std::sync::atomic::Ordering::Relaxed) > 0 {
            lab.runtime.gc(&network, |_| true).unwrap();
        }
    });
    assert_eq!(lab.runtime.attachments().unwrap(), []);
}

/// GC removes nothing if a cache file that may belong to the network cannot be read: libcni writes its files in place.
#[test]
fn gc_removes_nothing_where_it_cannot_tell() {
    let lab = Lab::new(&["p1"]);
    let network = list(&["p1"]);
    lab.runtime.add(&network, &container()).unwrap();
    lab.calls();
    let other = lab.cache_file().with_file_name("some-list-other-eth0");
    let whole = fs::read(lab.cache_file()).unwrap();
    for damaged in [&b""[..], &whole[..whole.len() / 2], b"{}", br#"{"cniVersion":"1.1.0"}"#] {
        fs::write(&other, damaged).unwrap();
        let error = lab.runtime.gc(&network, |_| false).unwrap_err();
        assert!(matches!(&error, Error::Unknown { path, .. } if *path == other), "{error}");
        assert_eq!(lab.calls(), []);
    }
    // A damaged file of another network does not matter.
    fs::rename(&other, other.with_file_name("another-other-eth0")).unwrap();
    lab.runtime.gc(&network, |_| false).unwrap();
    assert_eq!(lab.runtime.attachments().unwrap(), []);
}
