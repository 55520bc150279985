#include "worker/experts/routing_trace.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/dtype.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// docs/routing-trace.md is the description of all this.
constexpr absl::string_view kMagic("CRVNROUT", 8);
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 44;
constexpr size_t kBlockHeadBytes = 12;
constexpr size_t kEntryHeadBytes = 6;
constexpr int kMaxLayers = 1 << 16;
constexpr int kMaxExperts = 1 << 16;
// Some dozen tokens of R1; what a killed process loses.
constexpr size_t kWriteBytes = size_t{64} << 10;

/// The lowest `bytes` of `value`, lowest first.
void AppendInt(uint64_t value, size_t bytes, std::string& out) {
  for (size_t i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

uint64_t IntAt(const std::byte* at, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(at[i]) << (8 * i);
  return value;
}

uint64_t Checksum(const void* data, size_t size) { return XXH3_64bits(data, size); }

size_t IdBytes(const RoutingTraceHeader& header) { return header.n_routed_experts <= 256 ? 1 : 2; }

/// What no trace's header says.
absl::Status CheckHeader(const RoutingTraceHeader& header) {
  if (header.first_layer < 0 || header.num_layers < 1 ||
      header.num_layers > kMaxLayers - header.first_layer) {
    return absl::InvalidArgumentError(absl::StrCat("there are no ", header.num_layers,
                                                   " layers from ", header.first_layer, " on"));
  }
  if (header.n_routed_experts < 1 || header.n_routed_experts > kMaxExperts ||
      header.num_experts_per_tok < 1 || header.num_experts_per_tok > header.n_routed_experts) {
    return absl::InvalidArgumentError(absl::StrCat("a token cannot choose ",
                                                   header.num_experts_per_tok, " of ",
                                                   header.n_routed_experts, " experts"));
  }
  return absl::OkStatus();
}

std::string Encode(const RoutingTraceHeader& header) {
  std::string bytes(kMagic);
  AppendInt(kVersion, 4, bytes);
  AppendInt(header.model_fingerprint, 8, bytes);
  for (const int field : {header.first_layer, header.num_layers, header.n_routed_experts,
                          header.num_experts_per_tok}) {
    AppendInt(static_cast<uint64_t>(field), 4, bytes);
  }
  AppendInt(Checksum(bytes.data(), bytes.size()), 8, bytes);
  return bytes;
}

absl::StatusOr<RoutingTraceHeader> Decode(const std::byte (&bytes)[kHeaderBytes]) {
  if (std::memcmp(bytes, kMagic.data(), kMagic.size()) != 0) {
    return absl::InvalidArgumentError("is no routing trace");
  }
  if (const uint64_t version = IntAt(bytes + 8, 4); version != kVersion) {
    return absl::InvalidArgumentError(absl::StrCat("is a routing trace of version ", version,
                                                   "; this caravan reads version ", kVersion));
  }
  if (IntAt(bytes + kHeaderBytes - 8, 8) != Checksum(bytes, kHeaderBytes - 8)) {
    return absl::InvalidArgumentError("its header is damaged");
  }
  const auto int_at = [&](size_t at) {
    return static_cast<int>(std::min<uint64_t>(IntAt(bytes + at, 4), kMaxLayers + 1));
  };
  const RoutingTraceHeader header = {IntAt(bytes + 12, 8), int_at(20), int_at(24), int_at(28),
                                     int_at(32)};
  CARAVAN_RETURN_IF_ERROR(CheckHeader(header));
  return header;
}

absl::Status ErrnoStatus(absl::string_view path) {
  return absl::InvalidArgumentError(absl::ErrnoToStatus(errno, path).message());
}

class Nobody : public RoutingObserver {
 public:
  void OnRouting(int, int64_t, absl::Span<const int32_t>, absl::Span<const float>) override {}
};

/// Whether all was written; else errno says why not.
bool WriteAll(int fd, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RoutingTraceWriter>> RoutingTraceWriter::Open(
    const std::string& path, const RoutingTraceHeader& header) {
  if (const absl::Status valid = CheckHeader(header); !valid.ok()) return Annotate(valid, path);
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
  if (fd < 0) return ErrnoStatus(path);
  std::unique_ptr<RoutingTraceWriter> writer(new RoutingTraceWriter(path, fd, header));
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": another process records into it"));
  }
  struct stat info = {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus(path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  if (info.st_size == 0) {
    if (!WriteAll(fd, Encode(header))) return ErrnoStatus(path);
    return writer;
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<RoutingTraceReader> there,
                           RoutingTraceReader::Open(path));
  if (there->header() != header) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is a routing trace of another model or of other layers"));
  }
  Nobody nobody;
  CARAVAN_ASSIGN_OR_RETURN(const int64_t torn, there->Read(nobody));
  if (torn > 0) {
    LogWarning("routing_trace_torn", {{"path", path}, {"cut_bytes", torn}});
    if (::ftruncate(fd, info.st_size - torn) != 0) return ErrnoStatus(path);
  }
  return writer;
}

RoutingTraceWriter::RoutingTraceWriter(std::string path, int fd, const RoutingTraceHeader& header)
    : path_(std::move(path)), fd_(fd), header_(header), block_(kBlockHeadBytes, '\0') {
  block_.reserve(2 * kWriteBytes);
}

RoutingTraceWriter::~RoutingTraceWriter() {
  WriteBlock();
  ::close(fd_);
}

void RoutingTraceWriter::OnRouting(int layer, int64_t num_rows,
                                   absl::Span<const int32_t> expert_ids,
                                   absl::Span<const float> weights) {
  CARAVAN_CHECK(layer >= header_.first_layer && layer - header_.first_layer < header_.num_layers);
  CARAVAN_CHECK(expert_ids.size() ==
                static_cast<size_t>(num_rows) * static_cast<size_t>(header_.num_experts_per_tok));
  CARAVAN_CHECK(weights.size() == expert_ids.size());
  if (failed_ || num_rows == 0) return;
  AppendInt(static_cast<uint64_t>(layer), 2, block_);
  AppendInt(static_cast<uint64_t>(num_rows), 4, block_);
  const size_t id_bytes = IdBytes(header_);
  for (const int32_t id : expert_ids) AppendInt(static_cast<uint64_t>(id), id_bytes, block_);
  for (const float weight : weights) {
    // A model gone wrong is no reason for a file that nobody can read.
    const float finite = std::isfinite(weight) ? SaturateToFloat16(weight) : 0;
    AppendInt(FloatToFloat16(finite), 2, block_);
  }
  if (block_.size() >= kWriteBytes) WriteBlock();
}

void RoutingTraceWriter::WriteBlock() {
  const absl::string_view entries = absl::string_view(block_).substr(kBlockHeadBytes);
  if (entries.empty() || failed_) return;
  std::string head;
  AppendInt(entries.size(), 4, head);
  AppendInt(Checksum(entries.data(), entries.size()), 8, head);
  std::copy(head.begin(), head.end(), block_.begin());
  if (!WriteAll(fd_, block_)) {
    failed_ = true;
    LogWarning("routing_trace_ended", {{"error", ErrnoStatus(path_).message()}});
  }
  block_.resize(kBlockHeadBytes);
}

absl::StatusOr<std::unique_ptr<RoutingTraceReader>> RoutingTraceReader::Open(
    const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<ReadableFile> file, ReadableFile::Open(path));
  if (file->bytes() < static_cast<int64_t>(kHeaderBytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is no routing trace: it has only ", file->bytes(), " bytes"));
  }
  std::byte bytes[kHeaderBytes];
  CARAVAN_RETURN_IF_ERROR(file->Read(0, absl::MakeSpan(bytes)));
  const absl::StatusOr<RoutingTraceHeader> header = Decode(bytes);
  if (!header.ok()) return Annotate(header.status(), path);
  return std::unique_ptr<RoutingTraceReader>(new RoutingTraceReader(std::move(file), *header));
}

absl::StatusOr<int64_t> RoutingTraceReader::Read(RoutingObserver& observer) const {
  std::vector<std::byte> entries;
  int64_t offset = kHeaderBytes;
  while (offset < file_->bytes()) {
    const int64_t left = file_->bytes() - offset - static_cast<int64_t>(kBlockHeadBytes);
    if (left < 0) break;
    std::byte head[kBlockHeadBytes];
    CARAVAN_RETURN_IF_ERROR(file_->Read(offset, absl::MakeSpan(head)));
    const int64_t bytes = static_cast<int64_t>(IntAt(head, 4));
    if (bytes > left) break;
    entries.resize(static_cast<size_t>(bytes));
    const int64_t begin = offset + static_cast<int64_t>(kBlockHeadBytes);
    CARAVAN_RETURN_IF_ERROR(file_->Read(begin, absl::MakeSpan(entries)));
    if (Checksum(entries.data(), entries.size()) != IntAt(head + 4, 8)) {
      if (bytes == left) break;
      return absl::InvalidArgumentError(
          absl::StrCat(file_->path(), ": the block at byte ", offset, " is damaged"));
    }
    CARAVAN_RETURN_IF_ERROR(ReadBlock(begin, entries, observer));
    offset = begin + bytes;
  }
  return file_->bytes() - offset;
}

absl::Status RoutingTraceReader::ReadBlock(int64_t offset, absl::Span<const std::byte> entries,
                                           RoutingObserver& observer) const {
  const size_t id_bytes = IdBytes(header_);
  const size_t row_bytes = static_cast<size_t>(header_.num_experts_per_tok) * (id_bytes + 2);
  std::vector<int32_t> ids;
  std::vector<float> weights;
  for (size_t at = 0; at < entries.size();) {
    const auto wrong = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(file_->path(), ": the entry at byte ",
                                                     offset + static_cast<int64_t>(at), " ", what));
    };
    const size_t left = entries.size() - at;
    if (left < kEntryHeadBytes) return wrong("ends within its head");
    const int layer = static_cast<int>(IntAt(&entries[at], 2));
    const size_t num_rows = IntAt(&entries[at + 2], 4);
    if (layer < header_.first_layer || layer - header_.first_layer >= header_.num_layers) {
      return wrong(absl::StrCat("is of layer ", layer, ", which the header does not name"));
    }
    if (num_rows == 0 || num_rows > (left - kEntryHeadBytes) / row_bytes) {
      return wrong(absl::StrCat("cannot have ", num_rows, " rows"));
    }
    const size_t count = num_rows * static_cast<size_t>(header_.num_experts_per_tok);
    const std::byte* next = &entries[at + kEntryHeadBytes];
    ids.resize(count);
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(IntAt(next, id_bytes));
      if (id >= header_.n_routed_experts) return wrong(absl::StrCat("chooses expert ", id));
      next += id_bytes;
    }
    weights.resize(count);
    for (float& weight : weights) {
      weight = Float16ToFloat(static_cast<uint16_t>(IntAt(next, 2)));
      if (!std::isfinite(weight)) return wrong("has a weight that is no number");
      next += 2;
    }
    observer.OnRouting(layer, static_cast<int64_t>(num_rows), ids, weights);
    at += kEntryHeadBytes + num_rows * row_bytes;
  }
  return absl::OkStatus();
}

}  // namespace caravan
