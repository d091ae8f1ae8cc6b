// SPDX-License-Identifier: Apache-2.0
//! Overlays with many layers. The kernel takes one page of options and no more; the paths of some forty image layers and
//! that of a checkpoint's, which lies elsewhere, fill it. So the image's are named from the directory that they have in
//! common, as containerd does, and the checkpoint's stays absolute.
//!
//! Source: mount(2); containerd `core/mount/mount_linux.go`, compactLowerdirOption.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use nix::sched::{CloneFlags, unshare};

/// Bytes of options, from which on the library that mounts writes them shorter itself: less than the page that the kernel
/// takes. It does so by what all layers have in common, which is nothing here.
const OPTIONS_MAX: usize = 4096 - 512;

/// Whether these options must be written shorter.
pub(crate) fn is_long(mount: &Mount) -> bool {
    mount.type_ == "overlay" && length(&mount.options) >= OPTIONS_MAX
}

/// Mounts it at `target`, which must be absolute. Blocks.
///
/// # Errors
/// When there are too many layers, or the kernel refuses.
pub(crate) fn mount(mount: &Mount, target: &Path) -> io::Result<()> {
    let (folder, options) = compacted(&mount.options);
    if length(&options) >= OPTIONS_MAX {
        let layers = lower(&options).map_or(0, |(_, layers)| layers.len());
        return Err(io::Error::other(format!(
            "its {layers} layers are too many: their paths do not fit the page that the kernel takes; build the image with \
             fewer layers"
        )));
    }
    let mounted = std::thread::scope(|scope| {
        // The directory that a thread works in is its own from here on, and goes with it.
        let mounting = std::thread::Builder::new().name("overlay".into()).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(&folder)?;
            containerd_shim::mount::mount_rootfs(Some("overlay"), Some("overlay"), &options, target)
                .map_err(io::Error::other)
        })?;
        mounting.join().map_err(|_| io::Error::other("the thread panicked"))
    });
    mounted?
}

/// Bytes, with commas.
fn length(options: &[String]) -> usize {
    options.iter().map(|option| option.len() + 1).sum()
}

/// Which option has the lower directories, and these.
fn lower(options: &[String]) -> Option<(usize, Vec<&str>)> {
    let found =
        options.iter().enumerate().find_map(|(at, option)| Some((at, option.strip_prefix("lowerdir=")?)));
    found.map(|(at, layers)| (at, layers.split(':').collect()))
}

/// A directory, and the options as they are from there. The uppermost layer may lie anywhere. Pure.
fn compacted(options: &[String]) -> (PathBuf, Vec<String>) {
    let mut options = options.to_vec();
    let Some((at, layers)) = lower(&options) else { return ("/".into(), options) };
    let folder = common_folder(layers.get(1..).unwrap_or_default());
    let relative = |layer: &&str| {
        let inside = Path::new(layer).strip_prefix(&folder).ok().and_then(Path::to_str);
        inside.filter(|inside| !inside.is_empty()).unwrap_or(layer).to_owned()
    };
    let text = format!("lowerdir={}", layers.iter().map(relative).collect::<Vec<_>>().join(":"));
    if let Some(option) = options.get_mut(at) {
        *option = text;
    }
    (folder, options)
}

/// The deepest directory that holds all of these.
fn common_folder(layers: &[&str]) -> PathBuf {
    let mut folders = layers.iter().map(|layer| Path::new(layer).parent().unwrap_or_else(|| Path::new("/")));
    let first = folders.next().unwrap_or_else(|| Path::new("/"));
    folders
        .fold(first, |common, folder| {
            common.ancestors().find(|common| folder.starts_with(common)).unwrap_or_else(|| Path::new("/"))
        })
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: Vec<String>) -> Mount {
        Mount { type_: "overlay".into(), options, ..Default::default() }
    }

    #[test]
    fn the_images_layers_are_named_from_where_they_lie() {
        let options = ["upperdir=/s/9/fs", "lowerdir=/store/rootfs:/s/12/fs:/s/3/fs", "index=off"];
        let (folder, options) = compacted(&options.map(str::to_owned));
        assert_eq!(folder, Path::new("/s"));
        assert_eq!(options, ["upperdir=/s/9/fs", "lowerdir=/store/rootfs:12/fs:3/fs", "index=off"]);
        assert_eq!(common_folder(&["/a/b/1", "/a/c/2"]), Path::new("/a"));
        assert_eq!(common_folder(&["/a/b"]), Path::new("/a"));
        assert_eq!(common_folder(&[]), Path::new("/"));
    }

    #[test]
    fn an_image_of_a_hundred_layers_is_mounted_whole_and_one_of_thousands_is_refused() {
        let work = tempfile::tempdir().unwrap();
        let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
        let make = |name: &str| {
            std::fs::create_dir_all(path(name)).unwrap();
            path(name)
        };
        let mut layers = vec![make("store/checkpoint/rootfs")];
        for index in 0..100 {
            let layer = make(&format!("snapshots-of-a-node-with-a-long-name/{index}/fs"));
            std::fs::write(format!("{layer}/{index}"), "").unwrap();
            layers.push(layer);
        }
        let target = make("target");
        let with = |layers: &[String]| {
            let [upper, work] = [make("upper"), make("work")];
            overlay(vec![
                format!("workdir={work}"),
                format!("upperdir={upper}"),
                format!("lowerdir={}", layers.join(":")),
            ])
        };
        let many = with(&layers);
        assert!(is_long(&many) && !is_long(&with(&layers[..5])));
        let seen = std::thread::spawn(move || {
            // Nobody else sees what is mounted here.
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            rustix::mount::mount_change(
                "/",
                rustix::mount::MountPropagationFlags::PRIVATE
                    .union(rustix::mount::MountPropagationFlags::REC),
            )
            .unwrap();
            mount(&many, Path::new(&target)).unwrap();
            std::fs::read_dir(&target).unwrap().count()
        });
        assert_eq!(seen.join().unwrap(), 100);

        let thousands: Vec<_> = (0..2000).map(|index| path(&format!("layers/{index}/fs"))).collect();
        let error = mount(&with(&thousands), Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().contains("2000 layers are too many"), "{error}");
    }
}
