#ifndef CARAVAN_TESTS_WORKER_FILES_MADE_FILE_H_
#define CARAVAN_TESTS_WORKER_FILES_MADE_FILE_H_

// Packed files of noise, with the hashes that their manifest would have.

#include <cstdint>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/pack/file_hash.h"
#include "model/pack/pack_manifest.h"

namespace caravan {

struct MadeFile {
  PackedFile packed;
  std::string bytes;
};

inline std::string HashOfText(absl::string_view text) {
  return HashOf(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()), text.size()));
}

/// `head` bytes, `experts` runs of `stride` bytes, `tail` bytes.
inline MadeFile MakeFile(const std::string& name, int64_t head, int64_t experts = 0,
                         int64_t stride = 0, int64_t tail = 0) {
  MadeFile file;
  file.packed.name = name;
  file.packed.bytes = head + experts * stride + tail;
  std::mt19937_64 random(std::hash<std::string>()(name));
  while (static_cast<int64_t>(file.bytes.size()) < file.packed.bytes) {
    const uint64_t word = random();
    file.bytes.append(reinterpret_cast<const char*>(&word), sizeof(word));
  }
  file.bytes.resize(static_cast<size_t>(file.packed.bytes));
  file.packed.hash = HashOfText(file.bytes);
  if (experts > 0) {
    PackedExperts& made = file.packed.experts.emplace();
    made.count = experts;
    made.offset = head;
    made.stride = stride;
    for (int64_t e = 0; e < experts; ++e) {
      made.hashes.push_back(HashOfText(
          absl::string_view(file.bytes)
              .substr(static_cast<size_t>(head + e * stride), static_cast<size_t>(stride))));
    }
  }
  return file;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_WORKER_FILES_MADE_FILE_H_
