#ifndef CARAVAN_TESTS_SUPPORT_GOLDEN_H_
#define CARAVAN_TESTS_SUPPORT_GOLDEN_H_

// What another implementation computed, and how far from it we are.

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "base/check.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"

namespace caravan {

/// A model of the tests' data, and the file of its golden values.
struct GoldenModel {
  std::string directory;
  std::string golden;
};

inline const GoldenModel kTinyR1 = {CARAVAN_SOURCE_DIR "/models/tiny-r1", CARAVAN_SOURCE_DIR
                                    "/tests/data/goldens/tiny-r1-golden.safetensors"};

/// `name`: "v3-like", "kimi-k2-like" or "v2-lite-like", of 4 small layers with random weights.
inline GoldenModel SmallGoldenModel(const std::string& name) {
  const std::string directory = CARAVAN_SOURCE_DIR "/tests/data/goldens/" + name;
  return {directory, directory + "/golden.safetensors"};
}

inline std::unique_ptr<Checkpoint> MustOpenCheckpoint(const std::string& directory) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory);
  CARAVAN_CHECK(checkpoint.ok());
  return *std::move(checkpoint);
}

inline std::unique_ptr<SafetensorsFile> MustOpenGolden(const std::string& path) {
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
  CARAVAN_CHECK(file.ok());
  return *std::move(file);
}

template <typename T>
std::vector<T> GoldenValues(const SafetensorsFile& file, const std::string& name) {
  CARAVAN_CHECK(file.Find(name) != nullptr);
  const absl::Span<const std::byte> bytes = file.Bytes(name);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

/// ||a - b|| / ||b||; infinity where sizes differ or a value is not finite.
inline double RelativeError(absl::Span<const float> a, absl::Span<const float> b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    difference += d * d;
    norm += static_cast<double>(b[i]) * b[i];
  }
  const double error = std::sqrt(difference / norm);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_GOLDEN_H_
