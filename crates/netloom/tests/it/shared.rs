//! A node on which the reference plugins and ours work on one state.

use std::{collections::BTreeSet, path::Path};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS, with_prev};

fn conf() -> Value {
    json!({"cniVersion": "1.0.0", "name": "lab", "type": "bridge", "bridge": "br0", "isGateway": true,
           "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]]}})
}

fn left(host: &Host) -> String {
    host.sh("ip -br link | grep -c veth || true; ls /var/lib/cni/networks/lab | grep -c : || true; ls /var/lib/cni/networks/lab | grep -c ^10 || true")
}

/// One implementation checks and deletes what the other added, with and without the result of the ADD.
#[test]
fn one_deletes_what_the_other_added() {
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) else { return };
    let host = Host::new();
    let conf = conf();
    for (index, (adds, deletes, remembers)) in
        [(&peers, &*OURS, true), (&peers, &*OURS, false), (&*OURS, &peers, true), (&*OURS, &peers, false)]
            .into_iter()
            .enumerate()
    {
        let name = format!("c{index}");
        host.container(&name);
        let (adder, deleter) = (Call::new(&host, adds, &name), Call::new(&host, deletes, &name));
        let result = adder.add(&conf);
        deleter.check(&conf, &result);
        let prev = if remembers { result } else { Value::Null };
        deleter.del(&conf, &prev);
        assert_eq!(left(&host), "0\n0\n0\n", "added by {adds:?}, deleted by {deletes:?}");
        adder.del(&conf, &prev);
    }
}

/// Both allocate addresses from one store concurrently: 500 containers, 32 at once, no duplicate, and none left reserved.
#[test]
fn no_address_is_given_twice() {
    const CONTAINERS: usize = 500;
    const AT_ONCE: usize = 32;
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) else { return };
    let host = Host::new();
    host.container("c1");
    let conf = json!({"cniVersion": "1.0.0", "name": "lab", "type": "host-local",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/22"}], [{"subnet": "fd88::/64"}]]}});
    let run = |verb: &str, index: usize| -> Vec<String> {
        let bin: &Path = if index.is_multiple_of(2) { &peers } else { &OURS };
        let mut call = Call::new(&host, bin, "c1");
        call.id = format!("container-{index}");
        let result = call.call(verb, &with_prev(&conf, &Value::Null)).result(verb);
        let ips = result["ips"].as_array().into_iter().flatten();
        ips.map(|ip| ip["address"].as_str().unwrap().to_owned()).collect()
    };
    let next = std::sync::atomic::AtomicUsize::new(0);
    let given: Vec<String> = std::thread::scope(|scope| {
        let worker = || {
            let mut given = Vec::new();
            loop {
                let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if index >= CONTAINERS {
                    return given;
                }
                given.extend(run("ADD", index));
                // Some containers leave early, so that released addresses are allocated again.
                if index.is_multiple_of(5) {
                    run("DEL", index);
                    given.truncate(given.len() - 2);
                }
            }
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let distinct: BTreeSet<&String> = given.iter().collect();
    assert_eq!(given.len(), CONTAINERS * 4 / 5 * 2);
    assert_eq!(distinct.len(), given.len());
    assert_eq!(host.sh("ls /var/lib/cni/networks/lab | grep -c -e : -e ^10").trim(), given.len().to_string());
    for index in 0..CONTAINERS {
        // Each deletes what the other added.
        run("DEL", index + 1);
        run("DEL", index);
    }
    assert_eq!(host.sh("ls /var/lib/cni/networks/lab | grep -c -e : -e ^10 || true").trim(), "0");
}

/// Our runtime calls the reference plugins and continues from the cache files of libcni.
#[test]
fn our_runtime_drives_their_plugins() {
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) else { return };
    let host = Host::new();
    host.container("c1");
    std::fs::create_dir_all(host.path("/etc/cni/net.d")).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [conf(), {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}]});
    std::fs::write(host.path("/etc/cni/net.d/10-lab.conflist"), list.to_string()).unwrap();
    let tool = |verb: &str| {
        let mut command = host.command(OURS.join("cnitool"));
        let output = command.args([verb, "lab", "/run/netns/c1"]).env("CNI_PATH", &peers).output().unwrap();
        testkit::require_success(&output, verb);
        String::from_utf8(output.stdout).unwrap()
    };
    let result: Value = serde_json::from_str(&tool("add")).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.88.0.2/16");
    assert_eq!(host.sh("ip netns exec c1 cat /proc/sys/net/core/somaxconn").trim(), "500");
    assert!(host.succeeds("ip netns exec c1 ping -c 1 -W 2 10.88.0.1"));
    tool("check");
    // A cache file as libcni writes it: keys in its order, and one key in another case, as ocicni writes it.
    let path = host.sh("ls /var/lib/cni/results/*");
    let file = host.path(path.trim());
    let cached: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let text = cached.to_string().replace("\"containerId\"", "\"containerID\"");
    std::fs::write(&file, text).unwrap();
    tool("check");
    tool("del");
    assert_eq!(left(&host), "0\n0\n0\n");
    assert_eq!(host.sh("ls /var/lib/cni/results").trim(), "");
}
