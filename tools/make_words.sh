#!/usr/bin/env bash
# Speak the demo's words: 24 words x 3 voices of flite as 16 kHz mono FLAC, silence trimmed, with a table of durations.
# Made once; the result is kept in the repository. Needs flite and sox (Debian packages of these names).
set -euo pipefail
cd "$(dirname "$0")/../extract/demo_words"

open=(far hot are pop father mama wow bob apple hour dark palm) # the jaw drops
other=(see me keep tea bee sit fish need we these with pin)     # it does not
voices=(slt rms awb)

rm -f ./*.flac
echo "file,voice,word,mouth,duration_s" >words.csv
for voice in "${voices[@]}"; do
    for word in "${open[@]}" "${other[@]}"; do
        mouth=other
        [[ " ${open[*]} " == *" $word "* ]] && mouth=open
        file="$voice-$word.flac"
        spoken=$(mktemp --suffix .wav)
        flite -voice "$voice" -t "$word" -o "$spoken"
        sox -D "$spoken" -r 16000 -c 1 -b 16 -C 8 "$file" gain -n -3 \
            silence 1 0.005 0.8% reverse silence 1 0.005 0.8% reverse
        rm "$spoken"
        echo "$file,$voice,$word,$mouth,$(soxi -D "$file")" >>words.csv
    done
done
