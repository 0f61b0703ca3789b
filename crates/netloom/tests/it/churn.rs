//! Random concurrent ADD, DEL and GC, with plugins that are killed. Nothing is left behind.

use std::{
    process::Stdio,
    sync::{
        Mutex, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use testkit::{Host, Random};

use crate::lab::{Call, OURS, with_prev};

const OPERATIONS: u32 = 2000;
const AT_ONCE: u32 = 16;
const CONTAINERS: usize = 40;
const NETWORKS: [&str; 2] = ["lab", "far"];

fn chain(network: &str, container: usize) -> Vec<Value> {
    let (bridge, subnet) = if network == "lab" { ("br0", 88) } else { ("br1", 99) };
    let port = 10_000 + container + if network == "lab" { 0 } else { CONTAINERS };
    let ranges =
        json!([[{"subnet": format!("10.{subnet}.0.0/16")}], [{"subnet": format!("fd{subnet}::/64")}]]);
    let plugins = [
        json!({"type": "bridge", "bridge": bridge, "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true,
               "ipam": {"type": "host-local", "ranges": ranges}}),
        json!({"type": "tuning", "mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}),
        json!({"type": "portmap", "conditionsV4": ["!", "-s", "1.2.3.4"], "runtimeConfig": {"portMappings": [
            {"hostPort": port, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": port, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}]}}),
        json!({"type": "firewall", "ingressPolicy": "isolated"}),
        json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000,
               "egressRate": 8_000_000, "egressBurst": 800_000}),
    ];
    plugins
        .into_iter()
        .map(|mut conf| {
            conf["cniVersion"] = json!("1.1.0");
            conf["name"] = json!(network);
            conf
        })
        .collect()
}

/// Starts a plugin and kills it after a delay.
fn kill(call: &Call<'_>, verb: &str, conf: &Value, after: Duration) {
    let file = call.host.path(&format!("/run/stdin-{}-{}", call.id, conf["name"].as_str().unwrap()));
    std::fs::write(&file, conf.to_string()).unwrap();
    let mut child = call
        .host
        .command(call.bin.join(conf["type"].as_str().unwrap()))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &call.id)
        .env("CNI_NETNS", &call.netns)
        .env("CNI_IFNAME", &call.ifname)
        .env("CNI_PATH", call.bin)
        .stdin(std::fs::File::open(&file).unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The delay is random by design; there is no event to wait for.
    std::thread::sleep(after);
    drop(child.kill());
    drop(child.wait());
    drop(std::fs::remove_file(file));
}

#[test]
fn nothing_is_left_of_two_thousand() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("nft 'table inet own { chain f { type filter hook forward priority 0; policy drop; }; }'
             echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
    for index in 0..CONTAINERS {
        host.container(&format!("c{index}"));
    }
    let before = host.snapshot();
    // Like a runtime: one operation at a time per container, and GC alone on its network. Null marks an ADD that was killed.
    let attached: Vec<[Mutex<Option<Value>>; 2]> = (0..CONTAINERS).map(|_| Default::default()).collect();
    let networks: [RwLock<()>; 2] = Default::default();
    let (next, killed, collected) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for seed in 0..AT_ONCE {
            let (host, attached, networks) = (&host, &attached, &networks);
            let (next, killed, collected) = (&next, &killed, &collected);
            scope.spawn(move || {
                let mut random = Random::new(seed.into());
                while next.fetch_add(1, Ordering::Relaxed) < OPERATIONS {
                    let network = usize::try_from(random.below(2)).unwrap();
                    if random.below(50) == 0 {
                        let _alone = networks[network].write().unwrap();
                        garbage_collect(host, network, attached);
                        collected.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let _shared = networks[network].read().unwrap();
                    let container = usize::try_from(random.below(CONTAINERS as u64)).unwrap();
                    let mut state = attached[container][network].lock().unwrap();
                    let mut call = Call::new(host, &OURS, &format!("c{container}"));
                    call.ifname = format!("eth{network}");
                    let confs = chain(NETWORKS[network], container);
                    let fatal = if random.below(10) == 0 { random.below(5) } else { u64::MAX };
                    let moment = Duration::from_micros(random.below(9000));
                    let dies = |step: usize| u64::try_from(step).unwrap() == fatal;
                    if let Some(result) = state.take() {
                        for (step, conf) in confs.iter().rev().enumerate() {
                            if dies(step) {
                                killed.fetch_add(1, Ordering::Relaxed);
                                kill(&call, "DEL", &with_prev(conf, &result), moment);
                            }
                            call.del(conf, &result);
                        }
                        continue;
                    }
                    let mut result = Value::Null;
                    for (step, conf) in confs.iter().enumerate() {
                        let conf = with_prev(conf, &result);
                        if dies(step) {
                            killed.fetch_add(1, Ordering::Relaxed);
                            kill(&call, "ADD", &conf, moment);
                            // The runtime calls DEL after a failure, or it dies too. Then GC cleans up, or the DEL before the
                            // next ADD.
                            if random.below(2) == 0 {
                                confs.iter().rev().for_each(|conf| call.del(conf, &Value::Null));
                            } else {
                                host.sh(&format!(
                                    "ip netns exec {} ip link del {} || true",
                                    call.id, call.ifname
                                ));
                            }
                            result = Value::Null;
                            break;
                        }
                        result = call.add(&conf);
                    }
                    *state = Some(result);
                }
            });
        }
    });
    println!("{OPERATIONS} operations, {killed:?} killed, {collected:?} collections");
    assert!(killed.into_inner() > OPERATIONS / 20);
    // The namespaces' links are gone, and the runtime has no record of any attachment.
    host.sh("for name in $(ip netns list | cut -d' ' -f1); do ip netns exec $name ip link del eth0 || true
             ip netns exec $name ip link del eth1 || true; done 2>/dev/null");
    let nobody: Vec<[Mutex<Option<Value>>; 2]> = Vec::new();
    for network in 0..2 {
        garbage_collect(&host, network, &nobody);
    }
    host.sh("ip link del br0; ip link del br1");
    before.assert_same(&host.snapshot(), "after GC");
}

/// Calls GC of each plugin of a network with the attachments that are valid.
fn garbage_collect(host: &Host, network: usize, attached: &[[Mutex<Option<Value>>; 2]]) {
    let valid: Vec<Value> = attached
        .iter()
        .enumerate()
        .filter(|(_, states)| {
            states[network].lock().unwrap().as_ref().is_some_and(|result| !result.is_null())
        })
        .map(|(index, _)| json!({"containerID": format!("c{index}"), "ifname": format!("eth{network}")}))
        .collect();
    for mut conf in chain(NETWORKS[network], 0) {
        conf["cni.dev/valid-attachments"] = json!(valid);
        Call::new(host, &OURS, "gc").call("GC", &conf).result("GC");
    }
}
