//! Which events concern a caller that maintains some of a host's objects.

use std::{collections::BTreeSet, path::PathBuf};

use kernel::{
    Netns, Protocol, Socket,
    events::{Concern, Events, Links},
    link,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testkit::Host;

const PROTOCOL: u8 = 95;

/// Other programs' links, neighbours, routes and sets do not concern it; what is its own, or may have been, does.
#[test]
fn events_concern_the_owner_of_objects() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh(
        "for name in own outer other; do ip link add $name type veth peer name $name-; ip link set $name up; ip link set $name- up; done
         ip addr add 192.0.2.1/24 dev own; ip addr add 198.51.100.1/24 dev other
         nft 'table inet mine { set s { type ipv4_addr; }; }; table inet foreign { set s { type ipv4_addr; }; }'",
    );
    let cases = [
        ("ip link add third type veth peer name fourth; ip link set third up", Concern::Surroundings),
        ("ip link del third", Concern::Surroundings),
        ("ip addr add 198.51.100.2/24 dev other", Concern::Surroundings),
        ("ip neigh add 198.51.100.9 lladdr 02:00:00:00:00:01 dev other", Concern::None),
        ("ip route add 203.0.113.0/24 via 198.51.100.9", Concern::None),
        ("ip route add default via 198.51.100.9", Concern::Surroundings),
        ("nft add element inet foreign s '{ 192.0.2.9 }'", Concern::None),
        ("nft delete element inet foreign s '{ 192.0.2.9 }'", Concern::None),
        (
            "echo 0 >/proc/sys/net/ipv4/conf/other/rp_filter; echo 2 >/proc/sys/net/ipv4/conf/other/rp_filter",
            Concern::None,
        ),
        ("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:01 dev own", Concern::Own),
        ("ip route add 10.0.0.0/8 via 192.0.2.9 proto 95", Concern::Own),
        ("ip route replace 10.0.0.0/8 via 198.51.100.9", Concern::Own),
        ("ip addr del 192.0.2.1/24 dev own", Concern::Own),
        ("ip link set outer down", Concern::Own),
        (
            "echo 0 >/proc/sys/net/ipv4/conf/own/rp_filter; echo 2 >/proc/sys/net/ipv4/conf/own/rp_filter",
            Concern::Own,
        ),
        ("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.ip_forward=1", Concern::Own),
        ("nft add element inet mine s '{ 192.0.2.9 }'", Concern::Own),
        ("nft flush set inet mine s", Concern::Own),
        ("nft 'table inet third { chain c { type filter hook forward priority 0; }; }'", Concern::Own),
        ("nft add rule inet third c drop", Concern::Own),
        ("nft delete table inet mine", Concern::Own),
        ("ip link del own", Concern::Own),
    ];
    let netns = PathBuf::from(format!("/proc/{}/ns/net", host.pid()));
    let watch = || {
        Netns::open(&netns).unwrap().enter().unwrap();
        let socket = Socket::open(Protocol::Route).unwrap();
        let index = |name| BTreeSet::from([link::require(&socket, name).unwrap().index]);
        let links = Links { own: index("own"), uplinks: index("outer") };
        let (network, rules) = (Events::of_network().unwrap(), Events::of_ruleset().unwrap());
        for (line, expected) in cases {
            host.sh(line);
            let mut found = Concern::None;
            let brief = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            loop {
                let mut fds = [PollFd::new(&network, PollFlags::IN), PollFd::new(&rules, PollFlags::IN)];
                if poll(&mut fds, Some(&brief)).unwrap() == 0 {
                    break;
                }
                let ready = fds.map(|fd| !fd.revents().is_empty());
                if ready[0] {
                    found = found.max(network.concern(PROTOCOL, &links).unwrap());
                }
                if ready[1] {
                    found = found.max(rules.concern_of_tables("mine").unwrap());
                }
            }
            assert_eq!(found, expected, "{line}");
        }
    };
    std::thread::scope(|scope| scope.spawn(watch).join().unwrap());
}
