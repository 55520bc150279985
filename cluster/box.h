#ifndef CARAVAN_CLUSTER_BOX_H_
#define CARAVAN_CLUSTER_BOX_H_

// What one box can do: what predictions are made from.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// Rates are a second, of all of the box's cores or disks together.
struct Box {
  std::string name;
  double disk_read_bytes = 0;    // of reads as large as experts
  int64_t memory_bytes = 0;      // that a worker may take (`worker --ram`)
  double memory_read_bytes = 0;  // by the CPU
  double cpu_multiply_adds = 0;  // of block formats by 8-bit activations, where rows share a weight
  double cpu_attention_multiply_adds = 0;  // in f32, of queries by the KV cache
  int64_t vram_bytes = 0;                  // that a worker may take; 0: no card
  double vram_read_bytes = 0;
  double gpu_multiply_adds = 0;  // of weights, and of the KV cache, in 16 bits
  double hop_seconds = 0;        // from one box to the next, a step's activations included
};

/// Boxes of DESIGN that one need not own to ask about. Each figure's source stands beside it.
const std::vector<Box>& KnownBoxes();

/// Errors: NotFound - no box of this name; names those that there are.
absl::StatusOr<Box> FindBox(absl::string_view name);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_BOX_H_
