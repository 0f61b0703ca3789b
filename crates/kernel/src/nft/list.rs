//! Reading of the ruleset: tables, chains, rules, elements with their comments, and the generation.

use super::{
    EXTRA_UDATA, Family, NFGEN, Table,
    attr::{
        CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CHAIN_TYPE, DATA_VALUE, DATA_VERDICT, ELEM_DATA,
        ELEM_ELEMENTS, ELEM_KEY, ELEM_SET, ELEM_TABLE, ELEM_USERDATA, HOOK_NUM, RULE_CHAIN, RULE_EXPRESSIONS,
        RULE_HANDLE, RULE_TABLE, RULE_USERDATA, TABLE_NAME, TABLE_USERDATA,
    },
    kind, msg, nfgen, read_comment, read_udata,
};
use crate::{
    error::{Result, absent_is_none},
    message::{Attrs, Message, Received, read_be32, read_text},
    socket::{DUMP, REQUEST, Socket},
};

/// One element of a set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// The key, its fields padded to four bytes each if there are several.
    pub key: Vec<u8>,
    /// The data; empty in a set or a verdict map.
    pub data: Vec<u8>,
    /// The target chain in a verdict map.
    pub goto: Option<String>,
    /// The owner.
    pub comment: Option<String>,
    /// The creator's extra bytes beside the comment, at most [`super::room_beside`] bytes.
    pub extra: Vec<u8>,
}

/// A chain of any table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The type of a base chain: `filter`, `nat` or `route`.
    pub kind: Option<String>,
    /// The hook, as in [`super::Hook`].
    pub hook: Option<u32>,
    /// Whether the chain's policy is to drop.
    pub drops: bool,
}

impl Chain {
    /// Returns its table.
    pub fn table(&self) -> Table<'_> {
        Table { family: self.family, name: &self.table }
    }
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: String,
    /// Its number in the table.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// The types of its expressions, in order: `payload`, `cmp`, `immediate`, …
    pub expressions: Vec<String>,
    /// The target of its final jump or goto.
    pub target: Option<String>,
    /// Whether it ends with the verdict drop.
    pub drops: bool,
    /// The values that it compares with, in order.
    pub compared: Vec<Vec<u8>>,
}

/// Reads the generation of the namespace's ruleset, which every change increments.
///
/// # Errors
/// If the kernel has no nftables.
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

/// Returns whether an event is of an element of a set in a table of another name, or of no object: it then only announces the generation.
pub(crate) fn is_elsewhere(received: &Received<'_>, name: &str) -> bool {
    let is_element = [kind(msg::NEWSETELEM), kind(msg::DELSETELEM)].contains(&received.kind);
    let table = || Attrs::after(received.payload, NFGEN).find(ELEM_TABLE).map(read_text);
    received.kind == kind(msg::NEWGEN) || is_element && table().is_some_and(|table| table != name)
}

/// Reads the comment of a table. Returns `None` if the table does not exist, and an empty text if it has no comment.
///
/// # Errors
/// If the kernel has no nftables.
pub fn table_comment(socket: &Socket, table: Table<'_>) -> Result<Option<String>> {
    let mut message = Message::new(kind(msg::GETTABLE), REQUEST, &nfgen(table.family.number(), 0));
    message.text(TABLE_NAME, table.name);
    let mut comment = String::new();
    let found = socket.ask(message, "find nftables table", &table.name, |received| {
        let data = Attrs::after(received.payload, NFGEN).find(TABLE_USERDATA);
        comment = data.and_then(read_comment).unwrap_or_default();
    });
    Ok(absent_is_none(found)?.map(|()| comment))
}

/// Lists the chains of a table. Returns an empty list if the table does not exist.
///
/// # Errors
/// If the kernel refuses the request.
pub fn chains(socket: &Socket, table: Table<'_>) -> Result<Vec<String>> {
    let message = Message::new(kind(msg::GETCHAIN), REQUEST | DUMP, &nfgen(table.family.number(), 0));
    socket.dump(&message, "list the chains of", &table.name, |received| {
        let attrs = Attrs::after(received.payload, NFGEN);
        let of_table = attrs.find(CHAIN_TABLE).map(read_text)?;
        (of_table == table.name).then(|| attrs.find(CHAIN_NAME).map(read_text)).flatten()
    })
}

/// Returns whether a table has a chain.
///
/// # Errors
/// If the kernel refuses the request.
pub fn has_chain(socket: &Socket, table: Table<'_>, chain: &str) -> Result<bool> {
    let mut message = Message::new(kind(msg::GETCHAIN), REQUEST, &nfgen(table.family.number(), 0));
    message.text(CHAIN_TABLE, table.name).text(CHAIN_NAME, chain);
    let found = socket.ask(message, "find nftables chain", &chain, |_| ());
    Ok(absent_is_none(found)?.is_some())
}

/// Lists the tables of the families in [`Family`].
///
/// # Errors
/// If the kernel refuses the request.
pub fn tables(socket: &Socket) -> Result<Vec<(Family, String)>> {
    let message = Message::new(kind(msg::GETTABLE), REQUEST | DUMP, &nfgen(0, 0));
    socket.dump(&message, "list", &"the nftables tables", |received| {
        let family = Family::of_number(*received.payload.first()?)?;
        Some((family, Attrs::after(received.payload, NFGEN).find(TABLE_NAME).map(read_text)?))
    })
}

/// Lists the chains of all tables of the families in [`Family`].
///
/// # Errors
/// If the kernel refuses the request.
pub fn all_chains(socket: &Socket) -> Result<Vec<Chain>> {
    let message = Message::new(kind(msg::GETCHAIN), REQUEST | DUMP, &nfgen(0, 0));
    socket.dump(&message, "list", &"the nftables chains", |received| {
        let family = Family::of_number(*received.payload.first()?)?;
        let mut chain =
            Chain { family, table: String::new(), name: String::new(), kind: None, hook: None, drops: false };
        for (kind, data) in Attrs::after(received.payload, NFGEN) {
            match kind {
                CHAIN_TABLE => chain.table = read_text(data),
                CHAIN_NAME => chain.name = read_text(data),
                CHAIN_TYPE => chain.kind = Some(read_text(data)),
                CHAIN_HOOK => chain.hook = Attrs(data).find(HOOK_NUM).and_then(read_be32),
                CHAIN_POLICY => chain.drops = read_be32(data) == Some(0),
                _ => {}
            }
        }
        Some(chain)
    })
}

/// Lists the rules of a chain, in order. Returns an empty list if the chain does not exist.
///
/// # Errors
/// If the kernel refuses the request.
pub fn rules(socket: &Socket, table: Table<'_>, chain: &str) -> Result<Vec<Rule>> {
    let mut message = Message::new(kind(msg::GETRULE), REQUEST | DUMP, &nfgen(table.family.number(), 0));
    message.text(RULE_TABLE, table.name).text(RULE_CHAIN, chain);
    let found = socket.dump(&message, "list the rules of", &chain, |received| read_rule(&received));
    let mut rules = absent_is_none(found)?.unwrap_or_default();
    rules.retain(|rule| rule.chain == chain);
    Ok(rules)
}

/// Finds the element with a key. Returns `None` if the element, the set or the table does not exist.
///
/// # Errors
/// If the kernel refuses the request.
pub fn element(socket: &Socket, table: Table<'_>, set: &str, key: &[u8]) -> Result<Option<Element>> {
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

/// Lists the elements of a set or map. Returns an empty list if it or its table does not exist.
///
/// # Errors
/// If the kernel refuses the request.
pub fn elements(socket: &Socket, table: Table<'_>, set: &str) -> Result<Vec<Element>> {
    let message = get(table, set, DUMP);
    let found = socket.dump(&message, "list the elements of", &set, |received| read(&received));
    Ok(absent_is_none(found)?.unwrap_or_default().into_iter().flatten().collect())
}

fn get(table: Table<'_>, set: &str, flags: u16) -> Message {
    let mut message = Message::new(kind(msg::GETSETELEM), REQUEST | flags, &nfgen(table.family.number(), 0));
    message.text(ELEM_TABLE, table.name).text(ELEM_SET, set);
    message
}

pub(crate) fn read(received: &Received<'_>) -> Option<Vec<Element>> {
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
            ELEM_USERDATA => {
                element.comment = read_comment(data);
                element.extra = read_udata(data, EXTRA_UDATA).unwrap_or_default().to_vec();
            }
            _ => {}
        }
    }
    element
}

pub(crate) fn read_rule(received: &Received<'_>) -> Option<Rule> {
    if received.kind != kind(msg::NEWRULE) {
        return None;
    }
    let mut rule = Rule {
        chain: String::new(),
        handle: 0,
        comment: None,
        expressions: Vec::new(),
        target: None,
        drops: false,
        compared: Vec::new(),
    };
    for (kind, data) in Attrs::after(received.payload, NFGEN) {
        match kind {
            RULE_CHAIN => rule.chain = read_text(data),
            RULE_HANDLE => rule.handle = u64::from_be_bytes(*data.first_chunk()?),
            RULE_USERDATA => rule.comment = read_comment(data),
            RULE_EXPRESSIONS => {
                for (_, expression) in Attrs(data) {
                    read_expression(expression, &mut rule);
                }
            }
            _ => {}
        }
    }
    Some(rule)
}

fn read_expression(expression: &[u8], rule: &mut Rule) {
    let name = Attrs(expression).find(EXPR_NAME).map(read_text).unwrap_or_default();
    let data = Attrs(Attrs(expression).find(EXPR_DATA).unwrap_or_default());
    match name.as_str() {
        "immediate" => {
            let verdict = data.find(IMMEDIATE_DATA).and_then(|data| Attrs(data).find(DATA_VERDICT));
            if let Some(verdict) = verdict.map(Attrs) {
                rule.target = verdict.find(VERDICT_CHAIN).map(read_text);
                rule.drops = verdict.find(VERDICT_CODE).and_then(read_be32) == Some(0);
            }
        }
        "reject" => rule.drops = true,
        "cmp" => {
            let value = data.find(COMPARE_DATA).and_then(|data| Attrs(data).find(DATA_VALUE));
            rule.compared.extend(value.map(<[u8]>::to_vec));
        }
        // iptables keeps the comment's text in a match of its own.
        "match" if data.find(MATCH_NAME).is_some_and(|name| read_text(name) == "comment") => {
            rule.comment = rule.comment.take().or(data.find(MATCH_INFO).map(read_text));
        }
        _ => {}
    }
    rule.expressions.push(name);
}

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const COMPARE_DATA: u16 = 3;
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;
const VERDICT_CODE: u16 = 1;
const GEN_ID: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
