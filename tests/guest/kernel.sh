# shellcheck shell=bash
# kernel.sh - Debian's cloud kernel for the test guests, taken from its package; sourced after cache.sh.

# Both consoles show the kernel's log; the last one is /dev/console. The rest saves time under emulation.
# shellcheck disable=SC2034
CMDLINE="console=tty0 console=ttyS0,115200 panic=-1 net.ifnames=0 mitigations=off no_timer_check tsc=reliable cryptomgr.notests"
# The devices a guest may have: disks on virtio, virtio-scsi or IDE, network card, ports, random numbers, power button.
MODULES=(virtio_pci virtio_console virtio_blk virtio_scsi sd_mod ata_piix virtio_net virtio-rng button evdev)

# Unpacks the newest cloud kernel's package into a directory, without installing it; prints its release.
unpack_kernel() {
  local into=$1 package downloads
  package=$(LC_ALL=C apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^<]*\)$/\1/p' | head -n 1)
  [[ -n $package ]] || die "apt knows no linux-image-cloud-amd64: run apt-get update"
  downloads=$(mktemp -d "$into/.download.XXXXXX")
  (cd "$downloads" && apt-get -q -o APT::Sandbox::User=root download "$package") >&2 || die "cannot download $package: run apt-get update"
  dpkg -x "$downloads"/*.deb "$into"
  rm -rf "$downloads"
  # A merged /usr is where newer releases keep modules.
  if [[ ! -d $into/lib/modules ]]; then mkdir -p "$into/lib" && ln -s ../usr/lib/modules "$into/lib/modules"; fi
  depmod -b "$into" "$(ls "$into/lib/modules")"
  ls "$into/lib/modules"
}

# Prints the files of MODULES and of what they need, each after those it needs.
module_files() { # KERNEL_DIR RELEASE
  local module
  for module in "${MODULES[@]}"; do
    modprobe -d "$1" -S "$2" --show-depends "$module" || die "the kernel has no module $module"
  done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++'
}

# Fills an initramfs root with busybox, and with /modules and the order to load them in.
start_initramfs() { # ROOT KERNEL_DIR RELEASE
  local root=$1 path module program
  mkdir -p "$root"/{bin,sbin,etc,dev,proc,sys,tmp,run,root,mnt,srv,modules}
  install /bin/busybox "$root/bin/busybox"
  for program in $(/bin/busybox --list); do
    if [[ $program != busybox ]]; then ln -s busybox "$root/bin/$program"; fi
  done
  module_files "$2" "$3" >"$root/.files"
  while read -r path; do
    module=${path##*/}
    case $path in
      *.xz) xz -dc "$path" >"$root/modules/${module%.xz}" ;;
      *.zst) zstd -qdc "$path" >"$root/modules/${module%.zst}" ;;
      *) cp "$path" "$root/modules/$module" ;;
    esac
    module=${module%.xz}
    echo "${module%.zst}" >>"$root/modules/order"
  done <"$root/.files"
  rm "$root/.files"
}

# Not compressed: reading it is faster than unpacking it under emulation.
pack_initramfs() { # ROOT FILE
  (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --null -o -H newc --owner=0:0 --quiet) >"$2"
  chmod 644 "$2"
}
