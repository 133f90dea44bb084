#!/usr/bin/env bash
# Fetches Pascal VOC, and the selective-search boxes and ImageNet weights that the author of Fast R-CNN published, into a
# folder.
#   scripts/download_voc.sh [07] [12] [boxes] [weights] [FOLDER]
#       07       VOC 2007 trainval and test      (0.9 GB)  FOLDER/VOCdevkit/VOC2007
#       12       VOC 2012 trainval               (1.9 GB)  FOLDER/VOCdevkit/VOC2012
#       boxes    boxes for both                  (0.5 GB)  FOLDER/selective_search_data/voc_2007_trainval.mat ...
#       weights  VGG16 and smaller ones of Caffe (1.0 GB)  FOLDER/imagenet_models/VGG16.v2.caffemodel ...
#   Without a choice: 07. FOLDER is `data` unless given. Goes on where it was interrupted; checks what it fetched.
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
        -*) echo "download_voc.sh: there is no option $argument; see --help." >&2; exit 2 ;;
        *) folder="$argument" ;;
    esac
done
[ "${#choices[@]}" -gt 0 ] || choices=(07)
mkdir -p "$folder"

md5_of() {
    if command -v md5sum > /dev/null; then md5sum "$1" | cut -d ' ' -f 1; else md5 -q "$1"; fi
}

# fetch URL FILE MD5: FILE is there and whole afterwards, or the script ends.
fetch() {
    local url="$1" file="$2" sum="$3"
    if [ -f "$file" ] && [ "$(md5_of "$file")" = "$sum" ]; then
        echo "$file: is here already"
        return
    fi
    echo "$file: fetching $url"
    if [ -f "$file.part" ] && [ "$(md5_of "$file.part")" = "$sum" ]; then  # whole, but not renamed any more
        mv "$file.part" "$file"
        return
    fi
    if command -v curl > /dev/null; then
        curl --fail --location --continue-at - --retry 5 --output "$file.part" "$url"
    elif command -v wget > /dev/null; then
        wget --continue --tries 5 --output-document "$file.part" "$url"
    else
        echo "download_voc.sh: neither curl nor wget is installed; install one, or fetch $url by hand." >&2
        exit 1
    fi || {
        echo "download_voc.sh: $url could not be fetched. Run the same command again to go on where it stopped," >&2
        echo "or fetch it elsewhere and put it at $file (MD5 $sum)." >&2
        exit 1
    }
    if [ "$(md5_of "$file.part")" != "$sum" ]; then
        mv "$file.part" "$file.bad"
        echo "download_voc.sh: $file is not what was published: MD5 $(md5_of "$file.bad") instead of $sum." >&2
        echo "Kept as $file.bad; run the same command again to fetch it anew." >&2
        exit 1
    fi
    mv "$file.part" "$file"
}

# unpack FILE: once; a mark beside the archive says that it was done.
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
