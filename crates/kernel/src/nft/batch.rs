//! Atomic changes of the ruleset.

use super::{
    Data, EXTRA_UDATA, Element, Expr, Hook, SUBSYSTEM, Set, Table, VERDICT_TYPE,
    attr::{
        CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CHAIN_TYPE, DATA_VALUE, ELEM_DATA, ELEM_ELEMENTS,
        ELEM_KEY, ELEM_SET, ELEM_TABLE, ELEM_USERDATA, HOOK_NUM, HOOK_PRIORITY, RULE_CHAIN, RULE_EXPRESSIONS,
        RULE_HANDLE, RULE_TABLE, RULE_USERDATA, TABLE_NAME, TABLE_USERDATA,
    },
    comment_udata, expr, kind, layout, msg, nfgen, set_udata,
};
use crate::{
    error::{Error, Result},
    inject,
    message::Message,
    socket::{ACK, CREATE, EXCL, REQUEST, Refusal, Socket},
};

/// The position of a new rule in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before all others.
    First,
    /// Before the rule with this handle.
    Before(u64),
    /// After all others.
    Last,
}

/// A list of changes, which [`commit`] applies in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    messages: Vec<Message>,
    /// The object of each message, for error messages.
    objects: Vec<String>,
    sets: u32,
}

impl Batch {
    /// Creates an empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Creates a table with a comment. The batch fails with [`crate::Kind::Exists`] if the table exists.
    pub fn create_table(&mut self, table: Table<'_>, comment: &str) {
        let message = self.message(msg::NEWTABLE, CREATE | EXCL, table, table.name.to_owned());
        message.text(TABLE_NAME, table.name).attr(TABLE_USERDATA, &comment_udata(comment));
    }

    /// Creates a table that the kernel removes when the socket that commits the batch is closed, even if the process is
    /// killed (`NFT_TABLE_F_OWNER`, Linux 5.12).
    pub fn create_owned_table(&mut self, table: Table<'_>, comment: &str) {
        let message = self.message(msg::NEWTABLE, CREATE | EXCL, table, table.name.to_owned());
        message.text(TABLE_NAME, table.name).be32(TABLE_FLAGS, TABLE_OWNED);
        message.attr(TABLE_USERDATA, &comment_udata(comment));
    }

    /// Removes a table with its content.
    pub fn remove_table(&mut self, table: Table<'_>) {
        self.message(msg::DELTABLE, 0, table, table.name.to_owned()).text(TABLE_NAME, table.name);
    }

    /// Creates a chain with a comment. The batch fails with [`crate::Kind::Exists`] if the chain exists.
    pub fn create_chain(&mut self, table: Table<'_>, name: &str, hook: Option<Hook>, comment: &str) {
        let message = self.message(msg::NEWCHAIN, CREATE | EXCL, table, name.to_owned());
        message.text(CHAIN_TABLE, table.name).text(CHAIN_NAME, name);
        if let Some(hook) = hook {
            message.nest(CHAIN_HOOK, |nested| {
                nested.be32(HOOK_NUM, hook.number).be32(HOOK_PRIORITY, hook.priority.cast_unsigned());
            });
            message.be32(CHAIN_POLICY, ACCEPT).text(CHAIN_TYPE, hook.kind);
        }
        if !comment.is_empty() {
            message.attr(CHAIN_USERDATA, &comment_udata(comment));
        }
    }

    /// Removes a chain with its rules. The batch fails with [`crate::Kind::Busy`] while a rule or element refers to it.
    pub fn remove_chain(&mut self, table: Table<'_>, name: &str) {
        self.message(msg::DELRULE, 0, table, name.to_owned())
            .text(RULE_TABLE, table.name)
            .text(RULE_CHAIN, name);
        self.message(msg::DELCHAIN, 0, table, name.to_owned())
            .text(CHAIN_TABLE, table.name)
            .text(CHAIN_NAME, name);
    }

    /// Adds a rule to a chain. An empty comment is omitted.
    pub fn add_rule(
        &mut self,
        table: Table<'_>,
        chain: &str,
        place: Place,
        rule: &[Expr<'_>],
        comment: &str,
    ) {
        let flags = if place == Place::Last { CREATE | APPEND } else { CREATE };
        let message = self.message(msg::NEWRULE, flags, table, chain.to_owned());
        message.text(RULE_TABLE, table.name).text(RULE_CHAIN, chain);
        message.nest(RULE_EXPRESSIONS, |list| {
            for expression in rule {
                list.nest(LIST_ELEM, |elem| expr::write(elem, expression));
            }
        });
        if let Place::Before(handle) = place {
            message.attr(RULE_POSITION, &handle.to_be_bytes());
        }
        if !comment.is_empty() {
            message.attr(RULE_USERDATA, &comment_udata(comment));
        }
    }

    /// Removes a rule by its handle.
    pub fn remove_rule(&mut self, table: Table<'_>, chain: &str, handle: u64) {
        let message = self.message(msg::DELRULE, 0, table, format!("{chain} handle {handle}"));
        message.text(RULE_TABLE, table.name).text(RULE_CHAIN, chain);
        message.attr(RULE_HANDLE, &handle.to_be_bytes());
    }

    /// Creates a set or map.
    pub fn create_set(&mut self, table: Table<'_>, set: &Set<'_>) {
        self.sets += 1;
        let id = self.sets;
        let message = self.message(msg::NEWSET, CREATE | EXCL, table, set.name.to_owned());
        let (key_type, key_length) = layout(set.key);
        message
            .text(SET_TABLE, table.name)
            .text(SET_NAME, set.name)
            .be32(SET_FLAGS, if set.data.is_some() { SET_MAP } else { 0 })
            .be32(SET_KEY_TYPE, key_type)
            .be32(SET_KEY_LEN, key_length);
        match set.data {
            None => {}
            Some(Data::Verdict) => {
                message.be32(SET_DATA_TYPE, VERDICT_TYPE).be32(SET_DATA_LEN, 0);
            }
            Some(Data::Fields(fields)) => {
                let (data_type, data_length) = layout(fields);
                message.be32(SET_DATA_TYPE, data_type).be32(SET_DATA_LEN, data_length);
            }
        }
        message.be32(SET_ID, id).attr(SET_USERDATA, &set_udata(set));
    }

    /// Adds elements. The batch fails with [`crate::Kind::Exists`] if a key exists.
    pub fn add_elements(&mut self, table: Table<'_>, set: &str, elements: &[Element]) {
        self.set_elements(msg::NEWSETELEM, CREATE | EXCL, table, set, elements);
    }

    /// Removes elements by their keys. The batch fails with [`crate::Kind::NotFound`] if a key does not exist.
    pub fn remove_elements(&mut self, table: Table<'_>, set: &str, elements: &[Element]) {
        self.set_elements(msg::DELSETELEM, 0, table, set, elements);
    }

    fn set_elements(&mut self, what: u16, flags: u16, table: Table<'_>, set: &str, elements: &[Element]) {
        // A nested attribute is limited to 64 KiB; an element of Netloom needs at most about 220 bytes.
        for chunk in elements.chunks(200) {
            let object = match chunk {
                [one] => format!("{set} {}", one.comment.as_deref().unwrap_or_default()),
                _ => set.to_owned(),
            };
            let message = self.message(what, flags, table, object);
            message.text(ELEM_TABLE, table.name).text(ELEM_SET, set).nest(ELEM_ELEMENTS, |list| {
                for element in chunk {
                    list.nest(LIST_ELEM, |elem| write_element(elem, element, what == msg::NEWSETELEM));
                }
            });
        }
    }

    fn message(&mut self, what: u16, flags: u16, table: Table<'_>, object: String) -> &mut Message {
        let family = table.family.number();
        self.objects.push(object);
        self.messages.push(Message::new(kind(what), REQUEST | flags, &nfgen(family, 0)));
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }
}

/// Applies the changes of a batch in one transaction, or none of them.
///
/// With `generation` the kernel refuses the batch with [`crate::Kind::Stale`] when anything in the
/// namespace's ruleset has changed since that generation was read.
///
/// # Errors
/// If the kernel refuses a change. The error names the first one; nothing has changed.
pub fn commit(socket: &Socket, batch: Batch, generation: Option<u32>) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let doing = "change the nftables ruleset at";
    inject::point(doing, batch.objects.first().map_or("", String::as_str))?;
    let mut begin = Message::new(BATCH_BEGIN, REQUEST, &nfgen(0, SUBSYSTEM));
    if let Some(generation) = generation {
        begin.be32(BATCH_GENID, generation);
    }
    let mut messages = vec![begin];
    messages.extend(batch.messages);
    // The kernel reports every refusal, and acknowledges only messages with the flag set. The last acknowledgement ends the
    // answer.
    let last = messages.len() - 1;
    messages[last].add_flags(ACK);
    messages.push(Message::new(BATCH_END, REQUEST, &nfgen(0, SUBSYSTEM)));

    let mut refused: Option<(usize, Refusal)> = None;
    let first = socket.send(&mut messages).map_err(|errno| Error::new(doing, "the socket", errno))?;
    while !socket
        .receive(|received| {
            let index = received.sequence.wrapping_sub(first) as usize;
            if index > last || i32::from(received.kind) != libc::NLMSG_ERROR {
                return false;
            }
            if let Some(refusal) = Refusal::read(&received)
                && refused.is_none()
            {
                refused = Some((index, refusal));
            }
            index == last || index == 0
        })
        .map_err(|errno| Error::new(doing, "the socket", errno))?
    {}
    match refused {
        None => Ok(()),
        Some((0, refusal)) => Err(refusal.into_error(doing, "the whole batch".into())),
        Some((index, refusal)) => {
            let object = batch.objects.get(index - 1).cloned().unwrap_or_default();
            Err(refusal.into_error(doing, format!("`{object}`")))
        }
    }
}

fn write_element(out: &mut Message, element: &Element, whole: bool) {
    out.nest(ELEM_KEY, |key| {
        key.attr(DATA_VALUE, &element.key);
    });
    if !whole {
        return;
    }
    if let Some(chain) = &element.goto {
        out.nest(ELEM_DATA, |data| expr::write_verdict(data, expr::GOTO, Some(chain)));
    } else if !element.data.is_empty() {
        out.nest(ELEM_DATA, |data| {
            data.attr(DATA_VALUE, &element.data);
        });
    }
    let mut udata = element.comment.as_deref().map(comment_udata).unwrap_or_default();
    if !element.extra.is_empty() {
        udata.extend([EXTRA_UDATA, u8::try_from(element.extra.len()).unwrap_or(u8::MAX)]);
        udata.extend_from_slice(&element.extra);
    }
    if !udata.is_empty() {
        out.attr(ELEM_USERDATA, &udata);
    }
}

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const BATCH_GENID: u16 = 1;
const APPEND: u16 = libc::NLM_F_APPEND as u16;
const ACCEPT: u32 = 1;
const SET_MAP: u32 = 8;

const TABLE_FLAGS: u16 = 2;
const TABLE_OWNED: u32 = 2;
const LIST_ELEM: u16 = 1;
const CHAIN_USERDATA: u16 = 12;
const RULE_POSITION: u16 = 6;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_ID: u16 = 10;
const SET_USERDATA: u16 = 13;
