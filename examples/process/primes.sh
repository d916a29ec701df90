#!/bin/sh
# Writes the primes of [SINEW_TASK * $1, (SINEW_TASK + 1) * $1) to output/, and says how many there are.
awk -v from="$((SINEW_TASK * $1))" -v count="$1" 'BEGIN {
  for (n = from; n < from + count; n++) {
    prime = n > 1
    for (d = 2; prime && d * d <= n; d++) if (n % d == 0) prime = 0
    if (prime) print n
  }
}' > "$SINEW_OUTPUT/primes.txt"
wc -l < "$SINEW_OUTPUT/primes.txt"
