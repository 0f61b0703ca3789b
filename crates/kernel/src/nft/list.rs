//! Reading the ruleset back: elements with their comments, chains, the generation.

use super::{
    NFGEN, Table,
    attr::{
        CHAIN_NAME, CHAIN_TABLE, DATA_VALUE, DATA_VERDICT, ELEM_DATA, ELEM_ELEMENTS, ELEM_KEY, ELEM_SET,
        ELEM_TABLE, ELEM_USERDATA, TABLE_NAME, TABLE_USERDATA,
    },
    kind, msg, nfgen, read_comment,
};
use crate::{
    error::{Result, absent_is_none},
    message::{Attrs, Message, Received, read_be32, read_text},
    socket::{DUMP, REQUEST, Socket},
};

/// Holds one element of a set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// The key, its fields padded to four bytes each if there are several.
    pub key: Vec<u8>,
    /// What the map leads to; empty in a set or a verdict map.
    pub data: Vec<u8>,
    /// The chain that a verdict map goes to.
    pub goto: Option<String>,
    /// The owner.
    pub comment: Option<String>,
}

/// Reads the generation of the namespace's ruleset, which every change raises.
///
/// # Errors
/// When the kernel has no nftables.
pub fn generation(socket: &Socket) -> Result<u32> {
    let message = Message::new(kind(msg::GETGEN), REQUEST, &nfgen(0, 0));
    let mut generation = 0;
    socket.ask(message, "read the generation of", &"the nftables ruleset", |received| {
        if let Some(id) = Attrs::after(received.payload, NFGEN).find(GEN_ID).and_then(read_be32) {
            generation = id;
        }
    })?;
    Ok(generation)
}

/// Reads the comment of a table; none when the table is not there, empty when it has no comment.
///
/// # Errors
/// When the kernel has no nftables.
pub fn table_comment(socket: &Socket, table: Table) -> Result<Option<String>> {
    let mut message = Message::new(kind(msg::GETTABLE), REQUEST, &nfgen(table.family.number(), 0));
    message.text(TABLE_NAME, table.name);
    let mut comment = String::new();
    let found = socket.ask(message, "find nftables table", &table.name, |received| {
        let data = Attrs::after(received.payload, NFGEN).find(TABLE_USERDATA);
        comment = data.and_then(read_comment).unwrap_or_default();
    });
    Ok(absent_is_none(found)?.map(|()| comment))
}

/// Lists the chains of a table; none of them when the table is not there.
///
/// # Errors
/// When the kernel refuses.
pub fn chains(socket: &Socket, table: Table) -> Result<Vec<String>> {
    let message = Message::new(kind(msg::GETCHAIN), REQUEST | DUMP, &nfgen(table.family.number(), 0));
    socket.dump(&message, "list the chains of", &table.name, |received| {
        let attrs = Attrs::after(received.payload, NFGEN);
        let of_table = attrs.find(CHAIN_TABLE).map(read_text)?;
        (of_table == table.name).then(|| attrs.find(CHAIN_NAME).map(read_text)).flatten()
    })
}

/// Finds the element with a key; none when it, the set or the table is not there.
///
/// # Errors
/// When the kernel refuses.
pub fn element(socket: &Socket, table: Table, set: &str, key: &[u8]) -> Result<Option<Element>> {
    let mut message = get(table, set, 0);
    message.nest(ELEM_ELEMENTS, |list| {
        list.nest(1, |elem| {
            elem.nest(ELEM_KEY, |data| {
                data.attr(1, key);
            });
        });
    });
    let mut found = None;
    let asked = socket.ask(message, "find an element of", &set, |received| {
        found = found.take().or(read(&received).and_then(|list| list.into_iter().next()));
    });
    Ok(absent_is_none(asked)?.and(found))
}

/// Lists the elements of a set or map; none of them when it or the table is not there.
///
/// # Errors
/// When the kernel refuses.
pub fn elements(socket: &Socket, table: Table, set: &str) -> Result<Vec<Element>> {
    let message = get(table, set, DUMP);
    let found = socket.dump(&message, "list the elements of", &set, |received| read(&received));
    Ok(absent_is_none(found)?.unwrap_or_default().into_iter().flatten().collect())
}

fn get(table: Table, set: &str, flags: u16) -> Message {
    let mut message = Message::new(kind(msg::GETSETELEM), REQUEST | flags, &nfgen(table.family.number(), 0));
    message.text(ELEM_TABLE, table.name).text(ELEM_SET, set);
    message
}

fn read(received: &Received<'_>) -> Option<Vec<Element>> {
    if received.kind != kind(msg::NEWSETELEM) {
        return None;
    }
    let list = Attrs::after(received.payload, NFGEN).find(ELEM_ELEMENTS)?;
    Some(Attrs(list).map(|(_, elem)| read_element(elem)).collect())
}

fn read_element(elem: &[u8]) -> Element {
    let mut element = Element::default();
    for (kind, data) in Attrs(elem) {
        match kind {
            ELEM_KEY => element.key = Attrs(data).find(DATA_VALUE).unwrap_or_default().to_vec(),
            ELEM_DATA => {
                element.data = Attrs(data).find(DATA_VALUE).unwrap_or_default().to_vec();
                let verdict = Attrs(data).find(DATA_VERDICT);
                element.goto = verdict.and_then(|v| Attrs(v).find(VERDICT_CHAIN)).map(read_text);
            }
            ELEM_USERDATA => element.comment = read_comment(data),
            _ => {}
        }
    }
    element
}

const GEN_ID: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
