//! The user data of sets, which tells nft how to print them. The kernel does not read it.
//!
//! Source: nftables' `src/mnl.c`, `src/payload.c` and `include/proto.h`.

use super::{Field, Set, comment_udata};

/// Returns the byte order of a set's keys (interface names are in host byte order, all else in network byte order), its comment, and, for
/// keys with bytes of the packet, the expressions that they are compared with. Without these, nft prints a set that it cannot load again.
pub(super) fn set_udata(set: &Set<'_>) -> Vec<u8> {
    let order: u32 = if set.key == [Field::IfName] { 1 } else { 2 };
    let mut data = number(BYTE_ORDER, order);
    let mut comment = comment_udata(set.comment);
    comment[0] = COMMENT;
    data.extend(comment);
    if set.key.iter().any(|field| matches!(field, Field::Transport { .. })) {
        data.extend(nested(TYPE_OF, &concatenation(set.key)));
    }
    data
}

fn concatenation(fields: &[Field]) -> Vec<u8> {
    let payloads = (0..).zip(fields).flat_map(|(place, field)| nested(place, &payload(*field)));
    [number(KIND, CONCATENATION), nested(CONTENT, &payloads.collect::<Vec<_>>())].concat()
}

/// Describes where in the packet a field is: a field of a header that nft knows, or bytes from the transport header on.
fn payload(field: Field) -> Vec<u8> {
    let place = match field {
        Field::Transport { offset, length } => {
            vec![(HEADER, 0), (FIELD, 0), (BASE, TRANSPORT), (OFFSET, 8 * offset), (LENGTH, 8 * length)]
        }
        Field::Ipv6 => vec![(HEADER, IPV6), (FIELD, SOURCE6)],
        _ => vec![(HEADER, IPV4), (FIELD, SOURCE4)],
    };
    let place: Vec<u8> = place.into_iter().flat_map(|(kind, value)| number(kind, value)).collect();
    [number(KIND, PAYLOAD), nested(CONTENT, &place)].concat()
}

fn number(kind: u8, value: u32) -> Vec<u8> {
    nested(kind, &value.to_ne_bytes())
}

fn nested(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind, u8::try_from(content.len()).unwrap_or(u8::MAX)], content].concat()
}

/// `NFTNL_UDATA_SET_*`
const BYTE_ORDER: u8 = 0;
const TYPE_OF: u8 = 3;
const COMMENT: u8 = 7;
/// `NFTNL_UDATA_SET_TYPEOF_*`, and `enum expr_types`.
const KIND: u8 = 0;
const CONTENT: u8 = 1;
const PAYLOAD: u32 = 7;
const CONCATENATION: u32 = 13;
/// `NFTNL_UDATA_SET_KEY_PAYLOAD_*`, `enum proto_desc_id`, and the fields' places in nft's tables of headers.
const HEADER: u8 = 0;
const FIELD: u8 = 1;
const BASE: u8 = 2;
const OFFSET: u8 = 3;
const LENGTH: u8 = 4;
const IPV4: u32 = 12;
const IPV6: u32 = 13;
const SOURCE4: u32 = 11;
const SOURCE6: u32 = 8;
const TRANSPORT: u32 = 3;
