//! What the disk names of a volume. Of one that is damaged, what can still be reached: nothing else is written to those pages as long as
//! the state on disk names the volume, so that it can become whole again.
//!
//! One that would come back with something else than it held is not kept so: if the journal names it, its changes are gone with the next
//! checkpoint, and who shares data with it does not know of that and overwrites or frees it.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::StoredPage;
use super::load::{LoadError, Loader};
use crate::error::DiskFault;
use crate::layout::{
    DirectoryRecord, Leaf, MapRoot, PageKind, PageNumber, PagePointer, VolumeRecord, decode_node,
};
use crate::pages::PageHold;
use crate::tree::{FrozenTree, Node};

/// What the disk names of a volume.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) page: Option<Rc<StoredPage>>,
    pub(super) tree: FrozenTree,
    /// Of one that could not be read to its end.
    pub(super) remains: Remains,
}

/// Pages of a volume that could not be read to its end.
#[derive(Default)]
pub(super) struct Remains {
    /// Those that no part of a map has that is understood. Others that are damaged may have them as well.
    pages: BTreeMap<PageNumber, Rc<PageHold>>,
    /// Parts of its map that are whole; they hold their pages.
    nodes: Vec<Rc<Node>>,
}

impl Loader {
    /// What a volume's page says although it could not be read to its end; `None` if that is damaged.
    pub(super) async fn outline(
        &self,
        directory: &DirectoryRecord,
    ) -> Result<Option<(VolumeRecord, MapRoot)>, DiskFault> {
        let page = self.intact(directory.page, PageKind::Volume).await?;
        Ok(page.and_then(|page| VolumeRecord::decode(&page).ok()))
    }

    /// Takes a volume's page and what can be reached of its map, once all volumes that are understood have theirs.
    pub(super) async fn remains(&self, page: PageNumber, map: MapRoot) -> Result<Remains, DiskFault> {
        let mut remains = Remains::default();
        self.keep(page, &mut remains);
        let mut open: Vec<(PagePointer, u16)> = map.page.map(|page| (page, map.levels)).into_iter().collect();
        while let Some((pointer, level)) = open.pop() {
            if !self.keep(pointer.number, &mut remains) {
                continue;
            }
            if level == 0 {
                self.remains_of_leaf(pointer, &mut remains).await?;
                continue;
            }
            let Some(page) = self.intact(pointer, PageKind::Node).await? else { continue };
            let children = decode_node(&page).into_iter().flatten().flatten();
            open.extend(children.map(|child| (child, level - 1)));
        }
        Ok(remains)
    }

    async fn remains_of_leaf(&self, pointer: PagePointer, remains: &mut Remains) -> Result<(), DiskFault> {
        let Some(page) = self.intact(pointer, PageKind::Leaf).await? else { return Ok(()) };
        let Ok(mut leaf) = Leaf::decode(&page) else { return Ok(()) };
        while let Some(next) = leaf.next().filter(|next| self.keep(next.number, remains)) {
            match self.intact(next, PageKind::Overflow).await? {
                Some(page) if leaf.overflow(&page).is_ok() => {}
                _ => break,
            }
        }
        Ok(())
    }

    /// Takes a page; false if what lies behind it is taken already, or not this volume's.
    fn keep(&self, number: PageNumber, remains: &mut Remains) -> bool {
        if let Some(node) = self.nodes.borrow().get(&number) {
            remains.nodes.push(Rc::clone(node));
            return false;
        }
        let mut taken = self.remains.borrow_mut();
        let hold = taken.get(&number).cloned().or_else(|| self.pages.claim(number).ok().map(Rc::new));
        let Some(hold) = hold else { return false };
        taken.insert(number, Rc::clone(&hold));
        remains.pages.insert(number, hold).is_none()
    }

    /// A page that is what names it says; `None` if it is not.
    async fn intact(&self, pointer: PagePointer, kind: PageKind) -> Result<Option<Vec<u8>>, DiskFault> {
        match self.checked(pointer, kind).await {
            Ok((page, _)) => Ok(Some(page)),
            Err(LoadError::Damage(_)) => Ok(None),
            Err(LoadError::Fault(fault)) => Err(fault),
        }
    }
}
