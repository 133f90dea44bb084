#!/usr/bin/env bash
# Download Pascal VOC, and the selective search boxes and ImageNet weights that the author of Fast R-CNN published.
#
#   scripts/download_voc.sh [07] [12] [boxes] [weights] [FOLDER]
#       07       VOC 2007 trainval and test         (0.9 GB)  FOLDER/VOCdevkit/VOC2007
#       12       VOC 2012 trainval                  (1.9 GB)  FOLDER/VOCdevkit/VOC2012
#       boxes    proposals for both                 (0.5 GB)  FOLDER/selective_search_data/voc_2007_trainval.mat ...
#       weights  VGG16 and smaller Caffe networks   (1.0 GB)  FOLDER/imagenet_models/VGG16.v2.caffemodel ...
#   The default is 07. The default FOLDER is `data`. Resumes interrupted downloads and verifies checksums.
set -euo pipefail

voc="${VOC_URL:-https://thor.robots.ox.ac.uk/pascal/VOC}"
weights="${VOC_WEIGHTS_URL:-https://dl.dropboxusercontent.com/s/gstw7122padlf0l}"
boxes="${VOC_BOXES_URL:-https://dl.dropboxusercontent.com/s/orrt7o6bp6ae0tc}"
folder=data
choices=()
for argument in "$@"; do
    case "$argument" in
        07 | 12 | boxes | weights) choices+=("$argument") ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) echo "download_voc.sh: unknown option $argument. See --help." >&2; exit 2 ;;
        *) folder="$argument" ;;
    esac
done
[ "${#choices[@]}" -gt 0 ] || choices=(07)
mkdir -p "$folder"

md5_of() {
    if command -v md5sum > /dev/null; then md5sum "$1" | cut -d ' ' -f 1; else md5 -q "$1"; fi
}

# fetch URL FILE MD5: download and verify FILE, or exit.
fetch() {
    local url="$1" file="$2" sum="$3"
    if [ -f "$file" ] && [ "$(md5_of "$file")" = "$sum" ]; then
        echo "$file: already downloaded"
        return
    fi
    echo "$file: downloading $url"
    if [ -f "$file.part" ] && [ "$(md5_of "$file.part")" = "$sum" ]; then  # complete, but not renamed yet
        mv "$file.part" "$file"
        return
    fi
    if command -v curl > /dev/null; then
        curl --fail --location --continue-at - --retry 5 --output "$file.part" "$url"
    elif command -v wget > /dev/null; then
        wget --continue --tries 5 --output-document "$file.part" "$url"
    else
        echo "download_voc.sh: curl or wget is required. Install one of them, or download $url manually." >&2
        exit 1
    fi || {
        echo "download_voc.sh: $url could not be downloaded. Run the same command again to resume the download," >&2
        echo "or download the file on another machine and save it as $file (MD5 $sum)." >&2
        exit 1
    }
    if [ "$(md5_of "$file.part")" != "$sum" ]; then
        mv "$file.part" "$file.bad"
        echo "download_voc.sh: $file: wrong checksum: MD5 $(md5_of "$file.bad"), expected $sum." >&2
        echo "The file was renamed to $file.bad. Run the same command again to download it again." >&2
        exit 1
    fi
    mv "$file.part" "$file"
}

# unpack FILE: unpack an archive once, and create FILE.unpacked to record this.
unpack() {
    if [ ! -f "$1.unpacked" ]; then
        echo "$1: unpacking"
        tar -x -f "$1" -C "$folder"
        touch "$1.unpacked"
    fi
}

get() {
    fetch "$1/$2" "$folder/$2" "$3"
    unpack "$folder/$2"
}

for choice in "${choices[@]}"; do
    case "$choice" in
        07)
            get "$voc/voc2007" VOCtrainval_06-Nov-2007.tar c52e279531787c972589f7e41ab4ae64
            get "$voc/voc2007" VOCtest_06-Nov-2007.tar b6e924de25625d8de591ea690078ad9f
            ;;
        12) get "$voc/voc2012" VOCtrainval_11-May-2012.tar 6cd6e144f989b92b3379bac3b3de84fd ;;
        weights) get "$weights" imagenet_models.tgz ed34ca912d6782edfb673a8c3a0bda6d ;;
        boxes) get "$boxes" selective_search_data.tgz 7078c1db87a7851b31966b96774cd9b9 ;;
    esac
done
echo "Done. Next: fastrcnn check data=voc07 data.root=$folder/VOCdevkit"
