//! Lists that come in pages.

use std::{future::Future, pin::Pin};

use basalt_model::Revision;

use crate::ClientError;

/// Everything of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// The entries, ordered by name.
    pub items: Vec<T>,
    /// A revision at or before which everything listed was read: watch from here to miss nothing.
    pub revision: Revision,
}

/// One page as it was fetched.
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next_token: String,
    pub(crate) revision: Revision,
}

type Fetch<T> =
    dyn Fn(String) -> Pin<Box<dyn Future<Output = Result<Page<T>, ClientError>> + Send>> + Send + Sync;

/// Pages of a list, fetched one at a time.
pub struct Pages<T> {
    fetch: Box<Fetch<T>>,
    /// Token of the next page; `None` after the last.
    token: Option<String>,
    /// Of the first page.
    revision: Option<Revision>,
}

impl<T> Pages<T> {
    pub(crate) fn new<F, R>(fetch: F) -> Self
    where
        F: Fn(String) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Page<T>, ClientError>> + Send + 'static,
    {
        Self {
            fetch: Box::new(move |token| Box::pin(fetch(token))),
            token: Some(String::new()),
            revision: None,
        }
    }

    /// The next page; `None` after the last. After an error the same page can be asked for again.
    pub async fn next_page(&mut self) -> Result<Option<Vec<T>>, ClientError> {
        let Some(token) = self.token.clone() else { return Ok(None) };
        let page = (self.fetch)(token).await?;
        self.revision.get_or_insert(page.revision);
        self.token = Some(page.next_token).filter(|token| !token.is_empty());
        Ok(Some(page.items))
    }

    /// All pages that are left.
    pub async fn all(mut self) -> Result<Listing<T>, ClientError> {
        let mut items = Vec::new();
        while let Some(page) = self.next_page().await? {
            items.extend(page);
        }
        Ok(Listing { items, revision: self.revision.unwrap_or_default() })
    }
}

impl<T> std::fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("token", &self.token).finish_non_exhaustive()
    }
}
