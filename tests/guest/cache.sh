# shellcheck shell=bash
# cache.sh - where the built test guests are kept, and the way to build one; sourced by the build scripts.
#
# How:   build_once NAME INPUT... builds $cache/NAME by calling the function build_NAME with an empty
#        directory, unless $cache/NAME/stamp holds the hash of the inputs already. One build at a time
#        (flock); a finished directory is moved into place, so a stopped build leaves only a .tmp.*
#        directory, which the next build removes.
# Cache: $VIRT_CDP_CACHE; else /var/cache/virt-cdp-guests for root; else <repo>/target/guest-cache, or,
#        where another user (QEMU's) cannot walk to that, /var/tmp/virt-cdp-guests-<uid>.

guest_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo_dir=$(cd "$guest_dir/../.." && pwd)
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# True when users other than the owner can walk down to a directory.
others_reach() {
  local dir=$1
  while [[ $dir != / ]]; do
    if [[ -e $dir && ! $(stat -c %A "$dir") =~ [xt]$ ]]; then return 1; fi
    dir=$(dirname "$dir")
  done
}

cache_dir() {
  if [[ -n ${VIRT_CDP_CACHE:-} ]]; then
    echo "$VIRT_CDP_CACHE"
  elif ((EUID == 0)); then
    echo /var/cache/virt-cdp-guests
  elif others_reach "$repo_dir/target"; then
    echo "$repo_dir/target/guest-cache"
  else
    echo "/var/tmp/virt-cdp-guests-$EUID"
  fi
}

cache=$(cache_dir)
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
chmod a+x "$cache" 2>/dev/null || true

build_once() {
  local name=$1 stamp tmp
  shift
  stamp=$(cat -- "$@" | sha256sum | cut -d' ' -f1)
  if [[ $(cat "$cache/$name/stamp" 2>/dev/null) == "$stamp" ]]; then return; fi
  exec 8>"$cache/.$name.lock"
  flock 8
  if [[ $(cat "$cache/$name/stamp" 2>/dev/null) != "$stamp" ]]; then
    rm -rf "$cache/.tmp.$name".*
    tmp=$(mktemp -d "$cache/.tmp.$name.XXXXXX")
    chmod 755 "$tmp"
    say "building into $cache/$name (once)"
    (
      exec 8>&-
      "build_$name" "$tmp"
    )
    echo "$stamp" >"$tmp/stamp"
    rm -rf "$cache/.tmp.$name.old"
    if [[ -e $cache/$name ]]; then mv -T "$cache/$name" "$cache/.tmp.$name.old"; fi
    mv -T "$tmp" "$cache/$name"
    rm -rf "$cache/.tmp.$name.old"
  fi
  exec 8>&-
}

build_static() { gcc -Wall -Wextra -O2 -static -s -o "$2" "$1"; }
