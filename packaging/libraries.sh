#!/usr/bin/env bash
# The libraries that a program needs where it runs, with the Debian packages that bring them; `make dist` packs this list.
#
#   packaging/libraries.sh PROGRAM
set -euo pipefail
echo "Run-time libraries of $(basename "$1"), with the Debian or Ubuntu packages that bring them (-: from CUDA's own packages or elsewhere)"
echo
objdump -p "$1" | awk '$1 == "NEEDED" { print $2 }' | while read -r library; do
    path=$(ldd "$1" | awk -v name="$library" '$1 == name { print $3 }')
    package=-
    if [ -n "$path" ] && command -v dpkg-query >/dev/null; then
        package=$({ dpkg-query -S "$path" || dpkg-query -S "$(realpath "$path")" || dpkg-query -S "/usr$path"; } 2>/dev/null | head -n 1 | cut -d : -f 1) || true
    fi
    printf '%-28s %s\n' "$library" "${package:--}"
done
