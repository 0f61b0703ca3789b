//! The clients as values: a day goes by in a moment, and no answer of anybody makes them fail.
#![expect(clippy::unwrap_used, reason = "a test is to fail where this fails")]

use std::{net::Ipv4Addr, time::Duration};

use dhcp::{
    lease::{Output, Patience, Server},
    v4, v6,
};
use dhcproto::{
    Decodable, Decoder, Encodable,
    v4::{DhcpOption, Message, MessageType, OptionCode, UnknownOption},
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PATIENCE: Patience = Patience { answer: Duration::from_secs(10), most: Duration::from_secs(62) };

fn client(now: Duration) -> v4::Client {
    let wishes = v4::Wishes {
        client_id: b"\0c1".to_vec(),
        provide: Vec::new(),
        request: vec![1, 3],
        broadcast: false,
    };
    v4::Client::new(MAC, wishes, PATIENCE, now)
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A row of numbers that is the same each time.
fn numbers() -> impl FnMut() -> u32 {
    let mut state = 1_u32;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    }
}

fn sent(outputs: &[Output]) -> Message {
    let (Output::Broadcast(packet) | Output::Unicast { packet, .. } | Output::Multicast(packet)) =
        &outputs[0]
    else {
        panic!("nothing is sent: {outputs:?}")
    };
    Message::decode(&mut Decoder::new(packet)).unwrap()
}

fn reply(to: &Message, kind: MessageType, address: [u8; 4], more: &[DhcpOption]) -> Vec<u8> {
    let mut message = to.clone();
    message.set_opcode(dhcproto::v4::Opcode::BootReply).set_yiaddr(address);
    message.opts_mut().clear();
    for option in [DhcpOption::MessageType(kind), DhcpOption::ServerIdentifier(SERVER)].iter().chain(more) {
        message.opts_mut().insert(option.clone());
    }
    message.to_vec().unwrap()
}

fn bound(lease: u32) -> v4::Client {
    let mut random = numbers();
    let mut client = client(at(0));
    let discover = sent(&client.tick(at(0), &mut random));
    let more = [DhcpOption::SubnetMask([255, 255, 255, 0].into()), DhcpOption::AddressLeaseTime(lease)];
    let request = sent(&client.receive(
        at(0),
        &reply(&discover, MessageType::Offer, [10, 0, 0, 9], &more),
        &mut random,
    ));
    let outputs =
        client.receive(at(0), &reply(&request, MessageType::Ack, [10, 0, 0, 9], &more), &mut random);
    assert!(matches!(&outputs[..], [Output::Bound(_)]), "{outputs:?}");
    client
}

/// Nobody answers: asked at growing distances, never faster than each half second nor slower than the patience says.
#[test]
fn without_a_server_it_asks_ever_more_rarely() {
    let (mut client, mut random) = (client(at(0)), numbers());
    let mut distances = Vec::new();
    for _ in 0..20 {
        let now = client.due();
        assert_eq!(client.tick(now, &mut random).len(), 1);
        distances.push(client.due().as_secs_f64() - now.as_secs_f64());
    }
    assert!(distances[..4].iter().all(|it| (0.5..=3.0).contains(it)), "{distances:?}");
    assert!(
        distances[4..].iter().all(|it| (3.0..=63.0).contains(it)) && distances[19] > 60.0,
        "{distances:?}"
    );
}

/// The times are the RFC's where the server says none: T1 at half, T2 at seven eighths.
#[test]
fn a_lease_is_renewed_rebound_and_lost_in_time() {
    let (mut client, mut random) = (bound(86_400), numbers());
    assert_eq!(client.due(), at(43_200));
    let outputs = client.tick(at(43_200), &mut random);
    assert!(matches!(outputs[..], [Output::Unicast { to: SERVER, .. }]));
    let (mut renewals, mut rebindings) = (1, 0);
    loop {
        let now = client.due();
        for output in client.tick(now, &mut random) {
            match output {
                Output::Unicast { .. } => renewals += 1,
                Output::Broadcast(_) if now < at(86_400) => rebindings += 1,
                Output::Lost(why) => {
                    assert_eq!((now, why), (at(86_400), "it expired"));
                    assert!(
                        (8..40).contains(&renewals) && (5..40).contains(&rebindings),
                        "{renewals} {rebindings}"
                    );
                    assert!(client.lease().is_none());
                    return;
                }
                _ => assert!(now >= at(75_600), "asked everybody at {now:?}"),
            }
        }
    }
}

/// Times that make no sense are put right; an answer to somebody else, by a stranger, or without a mask is none.
#[test]
fn answers_that_make_no_sense() {
    let mut random = numbers();
    for (kind, address, options, is_bound) in [
        (MessageType::Ack, [10, 0, 0, 9], vec![DhcpOption::AddressLeaseTime(0)], true),
        (MessageType::Ack, [10, 0, 0, 9], vec![DhcpOption::AddressLeaseTime(u32::MAX)], true),
        (
            MessageType::Ack,
            [10, 0, 0, 9],
            vec![DhcpOption::Renewal(9999), DhcpOption::AddressLeaseTime(10)],
            true,
        ),
        (MessageType::Ack, [0, 0, 0, 0], vec![], false),
        (MessageType::Ack, [224, 0, 0, 1], vec![], false),
        (MessageType::Ack, [10, 0, 0, 9], vec![DhcpOption::SubnetMask([255, 0, 255, 0].into())], false),
        (MessageType::Ack, [10, 0, 0, 9], vec![DhcpOption::ServerIdentifier([10, 0, 0, 66].into())], false),
        (MessageType::Offer, [10, 0, 0, 9], vec![], false),
        (MessageType::Discover, [10, 0, 0, 9], vec![], false),
    ] {
        let mut client = client(at(0));
        let discover = sent(&client.tick(at(0), &mut random));
        let mask = DhcpOption::SubnetMask([255, 255, 255, 0].into());
        let offer = reply(&discover, MessageType::Offer, [10, 0, 0, 9], std::slice::from_ref(&mask));
        let request = sent(&client.receive(at(0), &offer, &mut random));
        let all = [vec![mask], options.clone()].concat();
        let outputs = client.receive(at(0), &reply(&request, kind, address, &all), &mut random);
        assert_eq!(client.lease().is_some(), is_bound, "{kind:?} {address:?} {options:?}: {outputs:?}");
        if let Some(lease) = client.lease() {
            assert!(
                lease.renew <= lease.rebind && lease.rebind <= lease.expire && lease.renew > at(0),
                "{lease:?}"
            );
            assert_eq!(lease.server, Server::V4(SERVER));
        }
    }
}

/// Every byte changed, every length cut: no answer makes a client fail, and none but a whole one gives an address.
#[test]
fn broken_answers_are_left_aside() {
    let mut random = numbers();
    let mut four = client(at(0));
    let discover = sent(&four.tick(at(0), &mut random));
    let more = [
        DhcpOption::SubnetMask([255, 255, 255, 0].into()),
        DhcpOption::Router(vec![SERVER]),
        DhcpOption::DomainName("lab.example".to_owned()),
        DhcpOption::ClasslessStaticRoute(vec![("10.9.0.0/16".parse().unwrap(), SERVER)]),
        DhcpOption::Unknown(UnknownOption::new(
            OptionCode::DomainSearch,
            b"\x03lab\x07example\0\xc0\0".to_vec(),
        )),
    ];
    let offer = reply(&discover, MessageType::Offer, [10, 0, 0, 9], &more);
    let wishes = v6::Wishes { duid: vec![0, 4, 1], iaid: 1, provide: Vec::new() };
    let mut six = v6::Client::new(wishes, PATIENCE, at(0));
    assert_eq!(six.tick(at(0), &mut random).len(), 1);
    for length in 0..offer.len() {
        four.receive(at(0), &offer[..length], &mut random);
    }
    for index in 0..offer.len() {
        for bit in 0..8 {
            let mut broken = offer.clone();
            broken[index] ^= 1 << bit;
            let mut one = client(at(0));
            one.tick(at(0), numbers());
            one.receive(at(0), &broken, &mut random);
            assert!(one.lease().is_none());
            six.receive(at(0), &broken, &mut random);
        }
    }
    let mut noise = vec![0; 600];
    for _ in 0..20_000 {
        for byte in &mut noise {
            *byte = random().to_le_bytes()[2];
        }
        let length = usize::try_from(random()).unwrap() % noise.len();
        four.receive(at(0), &noise[..length], &mut random);
        six.receive(at(0), &noise[..length], &mut random);
    }
    assert!(four.lease().is_none() && six.lease().is_none());
}
