//! The conformance vectors of the specification's values: names, versions, arguments, configurations, results.
//!
//! The comment of each test lists its requirements (R) and vectors (V); `cargo xtask spec` reads them.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

use netloom_types::{
    Attachment, CniArgs, CniError, CniResult, Code, NetworkList, Object, PluginConfig, RequestConfig,
    RuntimeConfig, SemVer, SpecVersion, VersionInfo,
    config::Derive,
    json,
    name::{ContainerId, IfName, NetworkName, is_plugin_type},
};
use serde_json::{Value, json};

fn outcome<T>(result: Result<T, CniError>) -> Result<(), (u32, String, String)> {
    result.map(drop).map_err(|error| (error.code.number(), error.msg, error.details))
}

fn refused<T>(result: Result<T, CniError>, code: u32, msg: &str) {
    let (found, text, _) = outcome(result).expect_err(msg);
    assert_eq!((found, text.as_str()), (code, msg));
}

/// R23, V1, V2: a container ID starts with an alphanumeric and contains only alphanumerics, `_`, `.` and `-`.
#[test]
fn container_ids() {
    refused(ContainerId::parse(""), 3, "missing containerID");
    assert_eq!(
        outcome(ContainerId::parse("1234%%%")),
        Err((4, "invalid characters in containerID".into(), "1234%%%".into()))
    );
    for good in ["a51debf7e1eb", "a", "A.b_c-d"] {
        assert_eq!(ContainerId::parse(good).unwrap().as_str(), good);
    }
    for bad in ["-a", ".a", "_a", "a b", "a/b", "abc\n", "a\0", "../x", "é"] {
        refused(ContainerId::parse(bad), 4, "invalid characters in containerID");
    }
}

/// R3, V3: a network name follows the same rule and is short enough for a file name.
#[test]
fn network_names() {
    refused(NetworkName::parse(""), 7, "missing network name");
    assert_eq!(
        outcome(NetworkName::parse("1234%%%")),
        Err((7, "invalid characters found in network name".into(), "1234%%%".into()))
    );
    assert!(NetworkName::parse("eth0").is_ok());
    for bad in ["-a", "../x", "a/b", "a\0", "."] {
        refused(NetworkName::parse(bad), 7, "invalid characters found in network name");
    }
    refused(NetworkName::parse(&"n".repeat(256)), 7, "network name is longer than 255 bytes");
}

/// R25, V4, V5, V6: an interface name is one that Linux accepts, with its length in bytes.
#[test]
fn interface_names() {
    refused(IfName::parse(""), 4, "interface name is empty");
    for long in ["testnamemorethan16", "1234567890123456", "ééééééé1x"] {
        assert_eq!(
            outcome(IfName::parse(long)),
            Err((
                4,
                "interface name is too long".into(),
                "interface name should be less than 16 characters".into()
            ))
        );
    }
    assert!(IfName::parse("123456789012345").is_ok());
    for dots in [".", ".."] {
        refused(IfName::parse(dots), 4, "interface name is . or ..");
    }
    for bad in ["/testname", "test:test", "test name", "a\u{a0}b", "a\0b"] {
        refused(IfName::parse(bad), 4, "interface name contains / or : or whitespace characters");
    }
}

/// R14, R17: a plugin type is a file name without any path.
#[test]
fn plugin_types() {
    for good in ["bridge", "my-plugin_1.2"] {
        assert!(is_plugin_type(good));
    }
    for bad in ["", ".", "..", "../bridge", "a/b", "a\\b", "a\0b"] {
        assert!(!is_plugin_type(bad), "{bad:?}");
    }
    let error = PluginConfig::parse(br#"{"type":"../x"}"#).unwrap_err().to_string();
    assert!(error.contains("invalid plugin name: ../x"), "{error}");
}

/// V68: versions are ordered by their numbers; the empty string means 0.1.0.
#[test]
fn semantic_versions() {
    assert_eq!(SemVer::parse("1.2.3"), Ok(SemVer(1, 2, 3)));
    assert_eq!(SemVer::parse(""), Ok(SemVer(0, 1, 0)));
    assert_eq!(SemVer::parse("1"), Ok(SemVer(1, 0, 0)));
    assert_eq!(SemVer::parse("0.-42.0"), Ok(SemVer(0, -42, 0)));
    for bad in ["asdfasdf", "asdf.", ".asdfas", "asdf.adsf.", "0.", "..", "1.2.3.4.5", "1.1.0-rc1"] {
        assert!(SemVer::parse(bad).is_err(), "{bad}");
    }
    for (newer, older) in
        [("1.2.34", "1.2.14"), ("2.5.4", "2.4.4"), ("1.2.3", "0.2.3"), ("0.4.0", "0.3.1"), ("1.0.0", "1.0.0")]
    {
        assert!(SemVer::parse(newer).unwrap() >= SemVer::parse(older).unwrap(), "{newer} {older}");
    }
    let from: Vec<&str> = SpecVersion::starting_from(SpecVersion::V0_3_1).map(SpecVersion::as_str).collect();
    assert_eq!(from, ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for version in SpecVersion::ALL {
        assert_eq!(SpecVersion::parse(version.as_str()), Some(version));
        assert_eq!(SemVer::parse(version.as_str()), Ok(version.into()));
    }
    assert_eq!(SpecVersion::parse(""), Some(SpecVersion::V0_1_0));
    assert_eq!(SpecVersion::parse("1.1"), None);
}

/// R57, R58, R96, V54: a plugin's answer to VERSION.
#[test]
fn version_answers() {
    let parsed = |text: &str| VersionInfo::parse(text.as_bytes()).map(|info| info.supported_versions);
    assert!(parsed("{{{").unwrap_err().to_string().starts_with("decoding version info: "));
    assert_eq!(parsed("{}").unwrap_err().to_string(), "decoding version info: missing field cniVersion");
    assert_eq!(parsed(r#"{"cniVersion":"0.2.0"}"#), Ok(vec!["0.1.0".into(), "0.2.0".into()]));
    assert!(parsed(r#"{"cniVersion":"0.3.0"}"#).is_err());
    let own = VersionInfo::new(&SpecVersion::ALL);
    assert_eq!(own.cni_version, "1.1.0");
    assert_eq!(VersionInfo::parse(serde_json::to_string(&own).unwrap().as_bytes()), Ok(own));
}

/// R26, V69: CNI_ARGS and the rules of IgnoreUnknown.
#[test]
fn arguments() {
    let check = |text: &str| CniArgs::parse(text).and_then(|args| args.require_known(&["IP"]));
    for good in
        ["", "IP=1.2.3.4", "IgnoreUnknown=True;Unk=nown", "Unk=nown;IgnoreUnknown=1", "IgnoreUnknown=1"]
    {
        assert_eq!(check(good), Ok(()), "{good}");
    }
    for bad in ["Unk=nown", "IgnoreUnknown=0;Unk=nown", "IgnoreUnknown=0, Unk=nown", "IgnoreUnknown=maybe"] {
        assert!(check(bad).is_err(), "{bad}");
    }
    for pair in ["FOO", "IP=a=b", "IgnoreUnknown=1;"] {
        assert!(check(pair).unwrap_err().to_string().starts_with("ARGS: invalid pair `"), "{pair}");
    }
    let args = CniArgs::parse("A=1;A=2;B=").unwrap();
    assert_eq!((args.value("A"), args.value("B"), args.value("a")), (Some("2"), Some(""), None));
    assert_eq!(args.render(), "A=1;A=2;B=");
}

fn list_error(text: &str) -> String {
    NetworkList::parse(text.as_bytes()).expect_err(text).to_string()
}

/// V27, V28, V33: texts that are not lists.
#[test]
fn lists_that_are_none() {
    assert!(list_error("{").starts_with("error parsing configuration list: "));
    let single = NetworkList::parse_single(b"{").unwrap_err().to_string();
    assert!(single.starts_with("error parsing configuration: "), "{single}");
    let no_type = PluginConfig::parse(br#"{"name":"some-plugin","some-key":"some-value"}"#);
    assert_eq!(no_type.unwrap_err().to_string(), "error parsing configuration: missing 'type'");
    for (text, expected) in [
        ("null", "expected a JSON object, found null"),
        ("{}", "no name"),
        (r#"{"name":null}"#, "no name"),
        (r#"{"name":5}"#, "invalid name type: a number"),
        (r#"{"name":"n","plugins":null}"#, "invalid 'plugins' type: null"),
        (r#"{"name":"n","plugins":{}}"#, "invalid 'plugins' type: an object"),
        (r#"{"name":"n","plugins":[]}"#, "no plugins in list"),
        (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"t"}]}"#, "invalid cniVersion type: a number"),
        (
            r#"{"name":"n","disableCheck":5,"plugins":[{"type":"t"}]}"#,
            "invalid type a number for disableCheck",
        ),
    ] {
        assert_eq!(list_error(text), format!("error parsing configuration list: {expected}"), "{text}");
    }
    let second = list_error(r#"{"name":"n","plugins":[{"type":"a"},{}]}"#);
    assert_eq!(second, "failed to parse plugin config 1: error parsing configuration: missing 'type'");
    for typed in [
        r#"{"type":5}"#,
        r#"{"type":"t","capabilities":{"a":"b"}}"#,
        r#"{"type":"t","ipam":[]}"#,
        r#"{"type":"t","dns":{"nameservers":"x"}}"#,
    ] {
        assert!(PluginConfig::parse(typed.as_bytes()).is_err(), "{typed}");
    }
    // The most common mistake has its own message.
    let list = NetworkList::parse_single(br#"{"name":"n","plugins":[{"type":"t"}]}"#).unwrap_err();
    assert!(list.to_string().contains(".conflist"), "{list}");
}

/// R7, R8, R10, R11, V29, V30: booleans may be strings, as in 0.4.0.
#[test]
fn flags() {
    for (value, expected) in [("true", true), ("\"TRUE\"", true), ("false", false), ("\"false\"", false)] {
        let text = format!(
            r#"{{"name":"n","disableCheck":{value},"disableGC":{value},"loadOnlyInlinedPlugins":{value},"plugins":[{{"type":"t"}}]}}"#
        );
        let list = NetworkList::parse(text.as_bytes()).unwrap();
        let flags = (list.disable_check, list.disable_gc, list.load_only_inlined_plugins);
        assert_eq!(flags, (expected, expected, expected), "{value}");
    }
    for (key, value) in [("disableCheck", "adsfasdfasf"), ("loadOnlyInlinedPlugins", "sphagnum")] {
        let text = format!(r#"{{"name":"n","{key}":"{value}","plugins":[{{"type":"t"}}]}}"#);
        assert_eq!(
            list_error(&text),
            format!("error parsing configuration list: invalid value {value:?} for {key}")
        );
    }
    assert_eq!(
        list_error(r#"{"name":"n","loadOnlyInlinedPlugins":true}"#),
        "error parsing configuration list: `loadOnlyInlinedPlugins` is true, and no 'plugins' key"
    );
}

/// R4, R5, V32: the highest known version of `cniVersion` and `cniVersions` is used.
#[test]
fn versions_of_a_list() {
    for (keys, expected) in [
        (r#""cniVersions":["1.1.0","0.4.0","1.0.0"]"#, "1.1.0"),
        (r#""cniVersions":["1.0.0","99.0.0","1.1.0"]"#, "1.1.0"),
        (r#""cniVersions":[]"#, ""),
        (r#""cniVersion":"1.2.3""#, "1.2.3"),
        (r#""cniVersion":"1.0.0","cniVersions":["0.1.0","0.4.0"]"#, "1.0.0"),
    ] {
        let text = format!(r#"{{"name":"n",{keys},"plugins":[{{"type":"t"}}]}}"#);
        assert_eq!(NetworkList::parse(text.as_bytes()).unwrap().cni_version, expected, "{keys}");
    }
    for wrong in [
        r#""cniVersions":["1.0.f"]"#,
        r#""cniVersions":[1]"#,
        r#""cniVersions":"1.0.0""#,
        r#""cniVersion":"x","cniVersions":["1.0.0"]"#,
    ] {
        list_error(&format!(r#"{{"name":"n",{wrong},"plugins":[{{"type":"t"}}]}}"#));
    }
}

/// R6, V38: a single plugin's configuration is a list of one; older and newer keys are kept together.
#[test]
fn a_single_configuration_is_a_list_of_one() {
    let list = NetworkList::parse_single(
        br#"{"name":"some-plugin","cniVersion":"0.3.1","type":"foobar","fromTheFuture":{"a":1}}"#,
    )
    .unwrap();
    assert_eq!((list.name.as_str(), list.cni_version.as_str()), ("some-plugin", "0.3.1"));
    assert_eq!(list.plugins.len(), 1);
    assert_eq!(list.plugins[0].object()["fromTheFuture"], json!({"a":1}));
}

fn derived(plugin: &str, call: &Derive<'_>) -> Value {
    PluginConfig::parse(plugin.as_bytes()).unwrap().derive(call).into()
}

const CALL: Derive<'static> = Derive {
    name: "net",
    version: "1.1.0",
    capability_args: None,
    prev_result: None,
    valid_attachments: None,
};

/// R18, R19, R84, V34: keys outside the protocol are passed on unchanged, in order, with every digit.
#[test]
fn unknown_keys_pass_unchanged() {
    let plugin = r#"{"zebra":1,"type":"bridge","mtu":1400,"big":12345678901234567890123,"exp":1e400,"a":{"y":1,"x":[null,"<&>"]}}"#;
    let parsed = PluginConfig::parse(plugin.as_bytes()).unwrap();
    assert_eq!(serde_json::to_string(parsed.object()).unwrap(), plugin.replace("1e400", "1e+400"));
    let sent = serde_json::to_string(&parsed.derive(&CALL)).unwrap();
    assert!(sent.contains("12345678901234567890123"), "{sent}");
    assert!(sent.find("zebra") < sent.find("type") && sent.find("mtu") < sent.find("\"a\""), "{sent}");
}

/// R15, R82, V37, V39: a capability is passed if the plugin declares it and the runtime has a value for it.
#[test]
fn capabilities_are_the_intersection() {
    let plugin =
        r#"{"type":"t","capabilities":{"portMappings":true,"somethingElse":true,"noCapability":false}}"#;
    let args: Object = json::parse_object(
        br#"{"portMappings":[1],"somethingElse":["foobar"],"noCapability":true,"notAdded":[2]}"#,
    )
    .unwrap();
    let sent = derived(plugin, &Derive { capability_args: Some(&args), ..CALL });
    assert_eq!(sent["runtimeConfig"], json!({"portMappings":[1],"somethingElse":["foobar"]}));
    assert!(sent.get("capabilities").is_none());
    let none: Object = json::parse_object(br#"{"other":1}"#).unwrap();
    let sent = derived(plugin, &Derive { capability_args: Some(&none), ..CALL });
    assert!(sent.get("runtimeConfig").is_none());
}

/// R16, R81, R83: only the runtime sets the keys that are reserved for it.
#[test]
fn reserved_keys_are_the_runtimes() {
    let plugin = r#"{"type":"t","NAME":"mine","CniVersion":"9","prevResult":{"a":1},"runtimeConfig":{"b":1},"cni.dev/x":1,"args":{"cni":{"ips":["10.0.0.2"]}}}"#;
    let valid = [Attachment { container_id: "c".into(), ifname: "eth0".into() }];
    let sent = derived(plugin, &Derive { valid_attachments: Some(&valid), ..CALL });
    let list = json!([{"containerID":"c","ifname":"eth0"}]);
    assert_eq!(
        sent,
        json!({"type":"t","args":{"cni":{"ips":["10.0.0.2"]}},"cniVersion":"1.1.0","name":"net",
               "cni.dev/valid-attachments":list,"cni.dev/attachments":list})
    );
    let prev = json!({"cniVersion":"1.1.0"});
    assert_eq!(derived(plugin, &Derive { prev_result: Some(&prev), ..CALL })["prevResult"], prev);
}

/// V25: Go's rules for keys: any case, the last of two wins, null is absent.
#[test]
fn keys_are_read_as_go_reads_them() {
    let config = RequestConfig::parse(br#"{"name":"%%","Name":"ok","CNIVERSION":"1.0.0","x":null}"#).unwrap();
    assert_eq!((config.name.as_str(), config.cni_version.as_str()), ("ok", "1.0.0"));
    assert!(RequestConfig::parse(br#"{"name":"%%","name":"ok"}"#).is_ok());
    let mapping: RuntimeConfig = json::from_object(
        &json::parse_object(br#"{"PORTMAPPINGS":[{"HostPort":1,"containerport":2}],"mac":null}"#).unwrap(),
    )
    .unwrap();
    assert_eq!((mapping.port_mappings[0].host_port, mapping.port_mappings[0].container_port), (1, 2));
    let wrong = json::parse_object(br#"{"portMappings":[{"hostPort":1},{"hostPort":1.5}]}"#).unwrap();
    let error = json::from_object::<RuntimeConfig>(&wrong).unwrap_err();
    assert_eq!(error.path(), "portMappings[1].hostPort");
}

/// Conventional capabilities in the form of CONVENTIONS.md.
#[test]
fn conventional_capabilities() {
    let text = json!({
        "portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"10.0.0.1"}],
        "ipRanges":[[{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.3","rangeEnd":"10.1.2.99","gateway":"10.1.2.254"}]],
        "bandwidth":{"ingressRate":2048,"ingressBurst":1600,"egressRate":4096,"egressBurst":1600},
        "dns":{"servers":["1.1.1.1"],"searches":["a.b"],"options":["ndots:2"]},
        "ips":["192.168.0.1","10.10.0.1/24"],
        "mac":"c2:11:22:33:44:55",
        "infinibandGUID":"c2:11:22:33:44:55:66:77",
        "deviceID":"0000:04:00.5",
        "aliases":["my-container"],
        "cgroupPath":"/kubelet/pod1"
    });
    let read: RuntimeConfig = json::from_value(&text).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), text);
}

/// R59, R64: the attachments that GC keeps; absent differs from empty. R1, R2: container and interface identify them.
#[test]
fn valid_attachments() {
    let read = |text: &str| RequestConfig::parse(text.as_bytes()).unwrap().valid_attachments();
    assert_eq!(read(r#"{"name":"n"}"#), Ok(None));
    assert_eq!(read(r#"{"name":"n","cni.dev/valid-attachments":[]}"#), Ok(Some(vec![])));
    let one = vec![Attachment { container_id: "c".into(), ifname: "eth0".into() }];
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let text = format!(r#"{{"name":"n","{key}":[{{"containerID":"c","ifname":"eth0"}}]}}"#);
        assert_eq!(read(&text), Ok(Some(one.clone())), "{key}");
    }
    assert!(read(r#"{"name":"n","cni.dev/valid-attachments":5}"#).is_err());
}

fn result(value: Value) -> CniResult {
    CniResult::parse(value.to_string().as_bytes(), SpecVersion::NEWEST).unwrap()
}

fn full_110() -> Value {
    json!({
        "cniVersion":"1.1.0",
        "interfaces":[{"name":"eth0","mac":"00:11:22:33:44:55","mtu":1500,"sandbox":"/proc/3553/ns/net",
                       "pciID":"8086:9a01","socketPath":"/path/to/vhost/fd"}],
        "ips":[{"interface":0,"address":"1.2.3.30/24","gateway":"1.2.3.1"},
               {"interface":0,"address":"abcd:1234:ffff::cdde/64","gateway":"abcd:1234:ffff::1"}],
        "routes":[{"dst":"15.5.6.0/24","gw":"15.5.6.8"},{"dst":"1111:dddd::/80","gw":"1111:dddd::aaaa"}],
        "dns":{"nameservers":["1.2.3.4","1::cafe"],"domain":"acompany.com",
               "search":["somedomain.com","otherdomain.net"],"options":["foo","bar"]}
    })
}

/// R91, R103, V58: a result of 1.1.0 and its conversion to older versions.
#[test]
fn conversion_down() {
    assert_eq!(result(full_110()).to_value(), full_110());
    let mut as_040 = full_110();
    as_040["cniVersion"] = "0.4.0".into();
    as_040["interfaces"] = json!([{"name":"eth0","mac":"00:11:22:33:44:55","sandbox":"/proc/3553/ns/net"}]);
    as_040["ips"][0]["version"] = "4".into();
    as_040["ips"][1]["version"] = "6".into();
    assert_eq!(result(full_110()).convert(SpecVersion::V0_4_0).unwrap().to_value(), as_040);
    let dns = full_110()["dns"].clone();
    let as_010 = json!({
        "cniVersion":"0.1.0",
        "ip4":{"ip":"1.2.3.30/24","gateway":"1.2.3.1","routes":[{"dst":"15.5.6.0/24","gw":"15.5.6.8"}]},
        "ip6":{"ip":"abcd:1234:ffff::cdde/64","gateway":"abcd:1234:ffff::1",
               "routes":[{"dst":"1111:dddd::/80","gw":"1111:dddd::aaaa"}]},
        "dns":dns
    });
    assert_eq!(result(full_110()).convert(SpecVersion::V0_1_0).unwrap().to_value(), as_010);
}

/// V59: versions before 0.3.0 need an address and contain one per family.
#[test]
fn conversion_to_one_address_a_family() {
    let convert = |value: Value| result(value).convert(SpecVersion::V0_2_0).map(|result| result.to_value());
    let none = convert(json!({"cniVersion":"0.4.0","dns":{}})).unwrap_err();
    assert_eq!(none.to_string(), "cannot convert: no valid IP addresses");
    assert!(convert(json!({"cniVersion":"0.4.0","ips":[{"version":"","address":"10.0.0.2/24"}]})).is_err());
    let many = json!({"cniVersion":"0.4.0","ips":[
        {"version":"4","address":"10.0.0.2/24"},{"version":"4","address":"10.0.0.3/24"},
        {"version":"6","address":"fd00::2/64"}]});
    assert_eq!(
        convert(many).unwrap(),
        json!({"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"},"ip6":{"ip":"fd00::2/64"},"dns":{}})
    );
    // A conversion from the newest format derives the family from the address.
    assert!(convert(json!({"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]})).is_ok());
}

/// V60, V61, V62: rendering of results: dns, zeros, every field of a route.
#[test]
fn printing() {
    let as_040 = result(json!({"cniVersion":"0.4.0","ips":[],"interfaces":[]}));
    assert_eq!(as_040.to_value(), json!({"cniVersion":"0.4.0","dns":{}}));
    assert_eq!(result(json!({"cniVersion":"1.0.0","dns":{}})).to_value(), json!({"cniVersion":"1.0.0"}));
    let zeros = json!({"dst":"0.0.0.0/0","table":0,"scope":0,"mtu":0,"priority":0,"gw":""});
    assert_eq!(
        result(json!({"cniVersion":"1.1.0","routes":[zeros]})).to_value()["routes"][0],
        json!({"dst":"0.0.0.0/0","table":0,"scope":0})
    );
    let full = json!({"dst":"1.2.3.0/24","gw":"1.2.3.1","mtu":1500,"advmss":1340,"priority":100,"table":50,"scope":253});
    let routes = json!({"cniVersion":"1.1.0","routes":[full]});
    assert_eq!(result(routes.clone()).to_value(), routes);
    assert!(result(full_110()).to_json().starts_with("{\n    \"cniVersion\": \"1.1.0\""));
    assert!(!result(full_110()).to_json().ends_with('\n'));
}

/// R102, V62, V63: the error names an invalid or missing address; a missing one is not printed as `<nil>`.
#[test]
fn addresses_that_are_none() {
    for (value, expected) in [
        (json!({"ips":[{"address":"1.2.3/45"}]}), "`ips[0].address`: invalid CIDR address: 1.2.3/45"),
        (json!({"ips":[{"address":"1.2.3.4/99"}]}), "invalid CIDR address: 1.2.3.4/99"),
        (json!({"ips":[{"address":"10.0.0.01/24"}]}), "invalid CIDR address: 10.0.0.01/24"),
        (json!({"ips":[{"address":"10.0.0.1"}]}), "invalid CIDR address: 10.0.0.1"),
        (json!({"ips":[{"address":5}]}), "`ips[0].address`"),
        (json!({"ips":[{}]}), "address"),
        (json!({"ips":[null]}), "`ips[0]`"),
        (json!({"routes":[{"dst":"0.0.0.0/0","gw":"1.2.3.x"}]}), "invalid IP address: 1.2.3.x"),
        (json!({"routes":[{"gw":"1.2.3.4"}]}), "dst"),
        (json!({"cniVersion":"0.4567.0"}), "unsupported CNI result version `0.4567.0`"),
    ] {
        let error =
            CniResult::parse(value.to_string().as_bytes(), SpecVersion::NEWEST).unwrap_err().to_string();
        assert!(error.contains(expected), "{value}: {error}");
    }
    let canonical = result(json!({"ips":[{"address":"2001:DB8:0:0::1/64"},{"address":"10.0.0.5/8"},
        {"address":"::ffff:10.0.0.1/120"}]}));
    let addresses: Vec<Value> =
        canonical.to_value()["ips"].as_array().unwrap().iter().map(|ip| ip["address"].clone()).collect();
    assert_eq!(addresses, ["2001:db8::1/64", "10.0.0.5/8", "10.0.0.1/24"]);
}

/// V65, V66: indices, the oldest two versions, and the misspelt key of 0.3.0, which no implementation reads.
#[test]
fn odds_and_ends_of_results() {
    for interface in [json!({"interface":0}), json!({})] {
        let mut ip = json!({"address":"10.0.0.2/24"});
        ip.as_object_mut().unwrap().extend(interface.as_object().unwrap().clone());
        let value = json!({"cniVersion":"1.1.0","interfaces":[{"name":"eth0"}],"ips":[ip]});
        assert_eq!(result(value.clone()).to_value(), value);
    }
    let old = json!({"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"},"dns":{}});
    let older = result(old).convert(SpecVersion::V0_1_0).unwrap().to_value();
    assert_eq!(older, json!({"cniVersion":"0.1.0","ip4":{"ip":"10.0.0.2/24"},"dns":{}}));
    let misspelt = result(json!({"cniVersion":"0.3.0","ip":[{"version":"4","address":"10.0.0.2/24"}]}));
    assert!(misspelt.into_current().ips.is_empty());
    let unversioned = CniResult::parse(br#"{"ip4":{"ip":"1.2.3.4/24"}}"#, SpecVersion::V0_1_0).unwrap();
    assert_eq!(unversioned.version(), SpecVersion::V0_1_0);
}

/// R92, R101: indices may be absent or -1, but not out of range.
#[test]
fn interface_indices() {
    let with = |index: i64| {
        result(json!({"interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/24","interface":index}]}))
            .into_current()
            .require_valid_indices()
    };
    assert!(with(0).is_ok() && with(-1).is_ok());
    for nowhere in [1, 99, -2] {
        assert!(with(nowhere).is_err(), "{nowhere}");
    }
}

/// R94, R95: the error object and the codes.
#[test]
fn errors() {
    for number in (0..120).chain([999, 1000]) {
        assert_eq!(Code::from(number).number(), number);
    }
    let error = CniError::new(Code::TryAgainLater, "later").details("soon");
    assert_eq!(
        error.to_json(),
        "{\n    \"code\": 11,\n    \"msg\": \"later\",\n    \"details\": \"soon\"\n}"
    );
    assert_eq!(CniError::parse(error.to_json().as_bytes()), Ok(error.clone()));
    let versioned = CniError { cni_version: Some(SpecVersion::V1_0_0), ..error };
    assert_eq!(CniError::parse(versioned.to_json().as_bytes()), Ok(versioned));
    // A result that a failing plugin printed is not an error object.
    for none in [r#"{"cniVersion":"1.1.0","ips":[]}"#, "[]", "", r#"{"code":-1}"#] {
        assert!(CniError::parse(none.as_bytes()).is_err(), "{none}");
    }
}

/// R97: required keys are enforced: a configuration without name is refused with code 7.
#[test]
fn request_configurations() {
    for (text, code) in [
        ("", 6),
        ("x", 6),
        ("[]", 6),
        ("\u{feff}{}", 6),
        (r#"{"name":"a"} x"#, 6),
        (r#"{"name":5}"#, 6),
        (r#"{"name":"a","cniVersion":1}"#, 6),
        ("{}", 7),
        ("null", 7),
        (r#"{"name":null}"#, 7),
        (r#"{"name":"-a"}"#, 7),
    ] {
        let error = RequestConfig::parse(text.as_bytes()).expect_err(text);
        assert_eq!(error.code.number(), code, "{text}: {error}");
    }
}
