//! A host device is never lost: it always returns from the container with its own name and its previous state.

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS};

const CONF: &str = r#"{"cniVersion": "1.1.0", "name": "lab", "type": "host-device", "device": "up0"}"#;

fn conf() -> Value {
    serde_json::from_str(CONF).unwrap()
}

fn a_host() -> Host {
    let host = Host::new();
    host.container("c1");
    host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up");
    host
}

/// Returns the device as the host sees it, without what the kernel resets when a link changes namespaces.
fn device(host: &Host) -> Value {
    let mut seen = host.json("ip -j link show up0");
    testkit::remove(&mut seen, &["qdisc"]);
    testkit::remove_carrier(&mut seen);
    seen
}

/// Root in the container renames the device, removes its alias or sets it down. DEL restores it.
#[test]
fn it_comes_back_whatever_the_container_did() {
    if !testkit::is_root() {
        return;
    }
    for did in [
        "true",
        "ip link set eth0 down; ip link set eth0 name gone",
        "ip link set eth0 alias nonsense",
        "ip link property del dev eth0 altname up0-was-up",
    ] {
        let host = a_host();
        let before = device(&host);
        let call = Call::new(&host, &OURS, "c1");
        let result = call.add(&conf());
        call.check(&conf(), &result);
        assert!(!host.succeeds("ip link show up0"));
        host.sh(&format!("ip netns exec c1 sh -c '{did}'"));
        call.del(&conf(), &result);
        if did.contains("altname") {
            // Without its alternative name the previous state is unknown. The device stays down, as with the reference plugin.
            host.sh("ip link set up0 up");
        }
        assert_eq!(device(&host), before, "{did}");
        call.del(&conf(), &result);
    }
}

/// The namespace ends without DEL. The kernel returns hardware to the host with its name in the container, or another name.
#[test]
fn it_gets_its_name_back_when_the_namespace_ended() {
    if !testkit::is_root() {
        return;
    }
    for (up, back_as) in [(true, "eth0"), (true, "dev7"), (false, "dev7")] {
        let host = a_host();
        if !up {
            host.sh("ip link set up0 down");
        }
        let before = device(&host);
        let call = Call::new(&host, &OURS, "c1");
        call.add(&conf());
        // Like the kernel with hardware. A veth end would be removed with its namespace.
        host.sh(&format!(
            "ip -n c1 link set eth0 down; ip -n c1 link set eth0 name {back_as}; ip -n c1 link set {back_as} netns {}
             ip netns del c1",
            host.pid()
        ));
        // Another container requests the device before DEL of the first.
        host.container("c2");
        let second = Call::new(&host, &OURS, "c2");
        let result = second.add(&conf());
        second.del(&conf(), &result);
        assert_eq!(device(&host), before, "{up} {back_as}");
        call.del(&conf(), &Value::Null);
        assert_eq!(device(&host), before, "{up} {back_as}");
    }
}

/// GC restores the device, and so does DEL without a namespace.
#[test]
fn it_gets_its_name_back_by_gc_and_by_del_alone() {
    if !testkit::is_root() {
        return;
    }
    for verb in ["GC", "DEL"] {
        let host = a_host();
        let before = device(&host);
        let call = Call::new(&host, &OURS, "c1");
        call.add(&conf());
        host.sh(&format!("ip -n c1 link set eth0 netns {}; ip netns del c1", host.pid()));
        let mut conf = conf();
        conf["cni.dev/valid-attachments"] = json!([]);
        Call { netns: String::new(), ..call }.call(verb, &conf).result(verb);
        assert_eq!(device(&host), before, "{verb}");
    }
}

/// Another link has the device's name: the device returns under another name, and the next DEL restores its own.
#[test]
fn a_taken_name_is_waited_for() {
    if !testkit::is_root() {
        return;
    }
    let host = a_host();
    let before = device(&host);
    let call = Call::new(&host, &OURS, "c1");
    call.add(&conf());
    host.sh("ip link add up0 type bridge");
    let (code, said) = call.call("DEL", &conf()).error();
    assert!(code == 7 && said.contains("has the name") && said.contains("run DEL again"), "{said}");
    assert!(!host.succeeds("ip netns exec c1 ip link show eth0"));
    host.sh("ip link del up0");
    call.del(&conf(), &Value::Null);
    assert_eq!(device(&host), before);
}

/// The reference plugin adds and ours deletes, and the reverse, as on a node that changes its plugins.
#[test]
fn the_reference_and_ours_give_back_each_others() {
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) else { return };
    for (adds, deletes) in [(&peers, &*OURS), (&*OURS, &peers)] {
        let host = a_host();
        let result = Call::new(&host, adds, "c1").add(&conf());
        Call::new(&host, deletes, "c1").del(&conf(), &result);
        let link = &host.json("ip -j link show up0")[0];
        assert!(link["ifalias"].is_null() && link["ifname"] == "up0", "{link}");
    }
}

/// A device is found by hardware address and by bus ID. A device with a userspace driver has no link to move.
#[test]
fn it_is_found_by_address_and_by_bus() {
    if !testkit::is_root() {
        return;
    }
    let host = a_host();
    host.sh("ip link set up0 address 02:00:00:00:00:77
             mount -t tmpfs none /sys/bus/pci; cd /sys/bus/pci; mkdir -p drivers/vfio-pci drivers/e1000
             for id in 5 6 7; do mkdir -p devices/0000:00:0$id.0; done
             mkdir -p devices/0000:00:05.0/net/up0 devices/0000:00:06.0/virtio3/net/up0
             ln -s ../../drivers/e1000 devices/0000:00:05.0/driver; ln -s ../../drivers/vfio-pci devices/0000:00:07.0/driver");
    let call = Call::new(&host, &OURS, "c1");
    let by = |key: &str, value: Value| {
        let mut conf = conf();
        conf.as_object_mut().unwrap().remove("device");
        conf[key] = value;
        conf
    };
    for conf in [
        by("hwaddr", json!("02:00:00:00:00:77")),
        by("hwaddr", json!("02-00-00-00-00-77")),
        by("pciBusID", json!("0000:00:05.0")),
        by("pciBusID", json!("0000:00:06.0")),
        by("runtimeConfig", json!({"deviceID": "0000:00:05.0"})),
    ] {
        let before = device(&host);
        let result = call.add(&conf);
        assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:77", "{conf}");
        call.check(&conf, &result);
        call.del(&conf, &result);
        assert_eq!(device(&host), before, "{conf}");
    }
    let mut conf = by("pciBusID", json!("0000:00:07.0"));
    conf["ipam"] = json!({"type": "static", "addresses": [{"address": "10.1.2.3/24"}]});
    let result = call.add(&conf);
    assert_eq!(result["interfaces"], json!([{"name": "eth0", "sandbox": "/run/netns/c1"}]));
    assert_eq!(result["ips"][0]["address"], "10.1.2.3/24");
    call.check(&conf, &result);
    call.del(&conf, &result);
}
