//! Lists of keys, in pages. etcd sends an answer as one message, and gRPC limits its size.

use etcd_client::{Client, Error, GetOptions, KeyValue, ResponseHeader};

/// The largest message that is accepted, in bytes. etcd's own limit of a value is 1.5 MiB, and up to 10 MiB are recommended.
pub(super) const LARGEST_MESSAGE: usize = 16 << 20;
/// The number of keys in a page.
const PAGE: i64 = 1_000;
/// The codes of gRPC for a message that is too large: `OUT_OF_RANGE` (this client), `RESOURCE_EXHAUSTED` (others).
const TOO_LARGE: [i32; 2] = [11, 8];

/// Calls `on_key` with each key that starts with a prefix, as of a revision: 0 means the newest one. Returns the revision.
pub(super) async fn list(
    client: &mut Client,
    prefix: &str,
    revision: i64,
    mut on_key: impl FnMut(&KeyValue),
) -> Result<i64, Error> {
    let mut client = client.kv_client().max_decoding_message_size(LARGEST_MESSAGE);
    let (mut first, end) = (prefix.as_bytes().to_vec(), after(prefix));
    let (mut revision, mut limit) = (revision, PAGE);
    loop {
        let options = GetOptions::new().with_range(end.clone()).with_limit(limit).with_revision(revision);
        let page = match client.get(first.clone(), Some(options)).await {
            Err(error) if is_too_large(&error) && limit > 1 => {
                limit = (limit / 4).max(1);
                continue;
            }
            page => page?,
        };
        revision = if revision == 0 { page.header().map_or(0, ResponseHeader::revision) } else { revision };
        page.kvs().iter().for_each(&mut on_key);
        match page.kvs().last().filter(|_| page.more()) {
            // The next key in the order of bytes.
            Some(last) => first = [last.key(), &[0]].concat(),
            None => return Ok(revision),
        }
    }
}

/// Counts the keys that start with a prefix, as of a revision.
pub(super) async fn count(client: &mut Client, prefix: &str, revision: i64) -> Result<i64, Error> {
    let options = GetOptions::new().with_prefix().with_count_only().with_revision(revision);
    Ok(client.get(prefix, Some(options)).await?.count())
}

/// Returns the first key after all that start with a prefix. A prefix is text that does not end with the last character.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    end.last_mut().into_iter().for_each(|last| *last += 1);
    end
}

/// Returns whether this client or a proxy refused the size of an answer.
fn is_too_large(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if TOO_LARGE.contains(&i32::from(status.code())))
}
