#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs thaw from its tarball, or removes it: install.sh [--uninstall] [--root DIR]
# Programs go to /usr/local, so that packages and this do not meet. Configuration that is there stays.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=
remove=
while [ $# -gt 0 ]; do
    case $1 in
        --uninstall) remove=1 ;;
        --root)
            root=$2
            shift
            ;;
        *)
            sed -n '3,4s/^# //p' "$0" >&2
            exit 2
            ;;
    esac
    shift
done

# Lists what belongs on the node, as paths below here/files.
files() {
    (cd "$here/files" && find . -type f | sed 's,^\./,,' | sort)
}

if [ -n "$remove" ]; then
    if [ -e "$root/var/lib/thaw/node.json" ]; then
        "$here/files/usr/local/bin/thaw" node uninstall --root "${root:-/}"
    fi
    [ -n "$root" ] || systemctl disable --now thaw-nri.service 2>/dev/null || true
    files | while read -r file; do
        case $file in
            etc/*) cmp -s "$here/files/$file" "$root/$file" || continue ;; # the administrator's by now
        esac
        rm -f "$root/$file"
    done
    for folder in etc/thaw usr/local/libexec/thaw usr/local/share/doc/thaw usr/local/share/thaw; do
        rmdir "$root/$folder" 2>/dev/null || true
    done
    echo "removed; checkpoints in /var/lib/thaw stay"
    exit
fi

files | while read -r file; do
    case $file in
        etc/*) [ ! -e "$root/$file" ] || continue ;;
    esac
    mkdir -p "$root/$(dirname "$file")"
    # A new file in the old one's place: a program that runs keeps the old one.
    cp -p "$here/files/$file" "$root/$file.new"
    mv "$root/$file.new" "$root/$file"
done
if [ -z "$root" ]; then
    ! command -v restorecon >/dev/null || restorecon /usr/local/bin/containerd-shim-thaw-v1
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        # One that runs already is of the release before.
        systemctl try-restart thaw-nri.service
        systemctl enable --now thaw-nri.service
    fi
fi
echo "installed; \`thaw node install\` makes containerd use it; add --dry-run to look first"
