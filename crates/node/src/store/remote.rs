//! A connection to a store elsewhere: made when it is needed, and anew after an error.

use std::{fmt::Display, time::Duration};

use tokio::runtime::Runtime;

use super::StoreError;

/// How long an answer is waited for.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Remote<C> {
    runtime: Runtime,
    client: Option<C>,
    store: &'static str,
}

impl<C> Remote<C> {
    pub(super) fn new(store: &'static str) -> Result<Self, StoreError> {
        let error = |error: std::io::Error| StoreError {
            doing: format!("start a thread for {store}"),
            why: error.to_string(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Ok(Self { runtime: runtime.map_err(error)?, client: None, store })
    }

    /// Has a task run beside.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Does something with a connection; makes one where there is none.
    pub(super) fn with<T, E: Display>(
        &mut self,
        doing: &str,
        connect: impl AsyncFnOnce() -> Result<C, E>,
        work: impl AsyncFnOnce(&mut C) -> Result<T, E>,
    ) -> Result<T, StoreError> {
        let error = |why: String| StoreError { doing: format!("{doing} in {}", self.store), why };
        let client = &mut self.client;
        let outcome = self.runtime.block_on(async {
            tokio::time::timeout(LIMIT, async {
                let connected = match client.take() {
                    Some(client) => client,
                    None => connect().await?,
                };
                work(client.insert(connected)).await
            })
            .await
        });
        match outcome {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(why)) => {
                *client = None;
                Err(error(why.to_string()))
            }
            Err(_) => {
                *client = None;
                Err(error(format!("no answer within {} s", LIMIT.as_secs())))
            }
        }
    }
}
