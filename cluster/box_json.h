#ifndef CARAVAN_CLUSTER_BOX_JSON_H_
#define CARAVAN_CLUSTER_BOX_JSON_H_

// A box as JSON: what `caravan probe` writes of the machine it runs on, and what `caravan plan`
// reads.
//
//   box     = { "name": text, "cpu": part, "memory": part, "disk": part,
//               "card": part (no card without it), "network": part (not known without it) }
//   part    = the name of one (cluster/known_boxes.h: "e3-1240v5", "nvme4", ...), or
//             { "name": text, "price_yuan": number, "sources": { field: text, ... }, figures }
//   figures = cpu:     cores, isa ("avx512", "avx2", "portable"), multiply_adds_per_second,
//                      attention_multiply_adds_per_second, pcie_generation
//             memory:  total_bytes, worker_bytes, read_bytes_per_second
//             disk:    drives, bytes, read_bytes_per_second
//             card:    count, total_bytes, worker_bytes, read_bytes_per_second,
//                      multiply_adds_per_second, pcie_bytes_per_second
//             network: bytes_per_second, latency_seconds
//
// May be missing: a part's name, price_yuan, sources; pcie_generation (0); drives and count (1);
// worker_bytes (WorkerMemory, WorkerVram); pcie_bytes_per_second (0). A known part has at most the
// rate of the CPU's slots; figures of one that is written out are taken as they are. "sources" says
// where figures come from, by the names of their fields. Fields that are not here are refused.
//
// A list of boxes:
//
//   boxes = [ entry, ... ] or { "boxes": [ entry, ... ], "network": part }
//   entry = { "box": the name of a known box, or a box,  or  "file": path of a file with a box,
//             "count": number (1), "name": text (in place of the box's own) }
//
// A path is relative to the list's folder. "network" is that of boxes that have none of their own;
// of several boxes each must have one.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cluster/box.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// `origin` names the text in errors.
/// Errors: InvalidArgument - a field is missing, wrong or not known; names origin and field.
absl::StatusOr<Box> BoxFromJson(const nlohmann::json& json, absl::string_view origin);

/// REQUIRES: numbers in the ranges that BoxFromJson takes; then that gives the box back.
nlohmann::json BoxToJson(const Box& box);

/// Equal boxes.
struct BoxCount {
  Box box;
  int count = 1;
};

/// The boxes of the list in the file at `path`, equal ones of several entries together.
/// Errors: as BoxFromJson; NotFound and others as ReadFile, of the file or of one that it names;
///         InvalidArgument - no boxes, or one of several is without a network.
absl::StatusOr<std::vector<BoxCount>> ReadBoxes(const std::string& path);

/// How many boxes a list may have.
inline constexpr int kMostBoxes = 1000;

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_BOX_JSON_H_
