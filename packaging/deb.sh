#!/usr/bin/env bash
# Makes a Debian package of an installed tree; `make deb` runs it.
#
#   packaging/deb.sh STAGE PROGRAM VERSION OUT.deb     STAGE holds usr/...; PROGRAM is the binary whose libraries count
#
# Depends comes from dpkg-shlibdeps where the binary's libraries are Debian packages; what lies elsewhere (CUDA in /usr/local) is said in the
# description instead.
set -euo pipefail
stage=$1 program=$(realpath "$2") version=$3 out=$(realpath -m "$4")
command -v dpkg-deb >/dev/null && command -v dpkg-shlibdeps >/dev/null ||
    { echo "deb: dpkg-deb and dpkg-shlibdeps are needed: apt-get install dpkg-dev" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/debian" "$stage/DEBIAN"
printf 'Source: train-llama3\n\nPackage: train-llama3\nArchitecture: any\n' >"$work/debian/control"
depends=$(cd "$work" && dpkg-shlibdeps -O --ignore-missing-info "$program" 2>"$work/log" | sed -n 's/^shlibs:Depends=//p')
[ -n "$depends" ] || { cat "$work/log" >&2; echo "deb: the libraries of $program belong to no package" >&2; exit 1; }
elsewhere=$(ldd "$program" | awk '$3 ~ /^\/usr\/local|^\/opt/ { print $1 }' | paste -sd ' ')

cat >"$stage/DEBIAN/control" <<END
Package: train-llama3
Version: $version
Architecture: $(dpkg --print-architecture)
Section: science
Priority: optional
Maintainer: the train_llama3 project <noreply@example.org>
Installed-Size: $(du -sk --exclude=DEBIAN "$stage" | cut -f1)
Depends: $depends
Recommends: openmpi-bin
Description: fine-tunes Llama-3 models in 8 or 6 bits
 One program, without a framework: every large matrix product, forward and
 backward, in INT8, FP8 or FP6 at BF16 accuracy.
END
[ -z "$elsewhere" ] || echo " It also needs, from outside Debian (CUDA): $elsewhere." >>"$stage/DEBIAN/control"
dpkg-deb --root-owner-group --build "$stage" "$out" >/dev/null
echo "$out: depends on $depends${elsewhere:+; from elsewhere: $elsewhere}"
