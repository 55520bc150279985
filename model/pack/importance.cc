#include "model/pack/importance.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sorted_keys.h"
#include "base/status_macros.h"
#include "model/fingerprint.h"
#include "model/pack/pack_file_writer.h"
#include "model/safetensors.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr char kCounts[] = "caravan.imatrix.counts";

/// The counts of `file`, JSON within a string, as the format has only strings there.
absl::StatusOr<json> ReadCounts(const SafetensorsFile& file) {
  const auto it = file.metadata().find(kCounts);
  if (it == file.metadata().end()) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": __metadata__ has no ", kCounts,
                                                   ", so it is not caravan calibrate's"));
  }
  return ParseJson(it->second, absl::StrCat(file.path(), ": ", kCounts));
}

absl::Span<const std::byte> BytesOf(const void* data, size_t size) {
  return {static_cast<const std::byte*>(data), size};
}

}  // namespace

absl::StatusOr<Importance> Importance::Read(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file,
                           SafetensorsFile::Open(path));
  CARAVAN_ASSIGN_OR_RETURN(const json counts, ReadCounts(*file));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields,
                           JsonFields::Of(counts, absl::StrCat(path, ": ", kCounts)));
  Importance importance;
  importance.path_ = path;
  for (const std::string& name : file->TensorNames()) {
    const auto wrong = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", name, ": ", what));
    };
    const TensorInfo& info = *file->Find(name);
    if (info.dtype != DType::kF32 || info.shape.size() != 1) return wrong("is no vector of F32");
    Columns columns;
    CARAVAN_ASSIGN_OR_RETURN(columns.count,
                             fields.Int(name, 0, std::numeric_limits<int64_t>::max()));
    columns.mean_square.resize(static_cast<size_t>(info.shape[0]));
    std::memcpy(columns.mean_square.data(), file->Bytes(name).data(), file->Bytes(name).size());
    for (const float value : columns.mean_square) {
      if (!(value >= 0 && std::isfinite(value))) return wrong("has a value that is no mean square");
    }
    importance.columns_[name] = std::move(columns);
  }
  return importance;
}

absl::Status Importance::Write(const std::string& path) const {
  json header = json::object();
  json counts = json::object();
  size_t end = 0;
  for (const std::string& name : Names()) {
    const Columns& columns = columns_.at(name);
    const size_t bytes = columns.mean_square.size() * sizeof(float);
    header[name] = {{"dtype", "F32"},
                    {"shape", {columns.mean_square.size()}},
                    {"data_offsets", {end, end + bytes}}};
    counts[name] = columns.count;
    end += bytes;
  }
  header["__metadata__"] = {{kCounts, counts.dump()}};
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // so that the data are aligned
  const uint64_t length = text.size();
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<PackFileWriter> file,
                           PackFileWriter::Create(path));
  CARAVAN_RETURN_IF_ERROR(file->Write(BytesOf(&length, sizeof(length))));
  CARAVAN_RETURN_IF_ERROR(file->Write(BytesOf(text.data(), text.size())));
  for (const std::string& name : Names()) {
    const std::vector<float>& values = columns_.at(name).mean_square;
    CARAVAN_RETURN_IF_ERROR(file->Write(BytesOf(values.data(), values.size() * sizeof(float))));
  }
  return file->Commit().status();
}

const Importance::Columns* Importance::Find(absl::string_view name) const {
  const auto it = columns_.find(name);
  return it == columns_.end() ? nullptr : &it->second;
}

uint64_t Importance::fingerprint() const {
  Fingerprint fingerprint;
  for (const std::string& name : Names()) {
    const Columns& columns = columns_.at(name);
    fingerprint.AddText(name);
    fingerprint.AddInt(columns.count);
    for (const float value : columns.mean_square) {
      fingerprint.AddInt(std::bit_cast<int32_t>(value));
    }
  }
  return fingerprint.value();
}

std::vector<std::string> Importance::Names() const { return SortedKeys(columns_); }

}  // namespace caravan
