#include "worker/weight_part.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/int_math.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "kernels/quant/dequantize.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

using Placed = WeightPart::Placed;

// Read at a time: enough for a disk to stream, and small against the stage, so that the threads end
// together. Of what is not read to its place, each thread holds as much once more.
constexpr int64_t kPieceBytes = int64_t{8} << 20;

// One copies while others wait for the disk. Other numbers were not tried.
constexpr int kReaders = 4;

bool IsNorm(const Placed& tensor) { return tensor.spec.tensor_class == TensorClass::kNorm; }
/// Whether the source's rows become tiles.
bool BecomesTiled(const Placed& tensor) { return tensor.loaded.layout != tensor.stored.layout; }

std::vector<TensorSpec> TensorsOf(const ModelConfig& config, const WeightPartId& id) {
  using Kind = WeightPartId::Kind;
  std::vector<TensorSpec> specs;
  switch (id.kind) {
    case Kind::kEmbedding:
      return EmbeddingTensors(config);
    case Kind::kHead:
      return HeadTensors(config);
    case Kind::kFinalNorm:
      specs = HeadTensors(config);
      specs.pop_back();
      return specs;
    case Kind::kLayer:
    case Kind::kExperts:
      specs = LayerTensors(config, id.layer);
      break;
    case Kind::kMtp:
    case Kind::kMtpExperts:
      specs = MtpTensors(config);
      break;
  }
  const bool experts = id.kind == Kind::kExperts || id.kind == Kind::kMtpExperts;
  std::erase_if(specs, [&](const TensorSpec& spec) {
    return (spec.tensor_class == TensorClass::kRoutedExpert) != experts;
  });
  return specs;
}

/// Lays tensors out one after another. Returns the bytes in all.
int64_t PlaceTensors(const TensorSource& source, std::vector<TensorSpec> specs,
                     std::vector<Placed>& placed) {
  int64_t end = 0;
  for (TensorSpec& spec : specs) {
    Placed tensor;
    tensor.stored = *source.Find(spec.name);
    tensor.loaded = LoadedInfo(spec, tensor.stored);
    tensor.offset = end;
    end += RoundUp(tensor.loaded.num_bytes(), kMatrixAlignment);
    if (const TensorInfo* scale = source.Find(ScaleName(spec.name)); scale != nullptr) {
      tensor.scale_offset = end;
      tensor.scale_bytes = scale->num_bytes();
      end += RoundUp(tensor.scale_bytes, kMatrixAlignment);
    }
    tensor.spec = std::move(spec);
    placed.push_back(std::move(tensor));
  }
  return end;
}

/// Some of a tensor, or its scales.
struct Piece {
  const Placed* tensor;
  std::byte* part;  // where the part lies that the tensor is in
  bool is_scale;
  int64_t offset;              // in the loaded tensor, and in the stored one
  int64_t size;                // bytes that it takes in memory
  std::atomic<int64_t>* left;  // pieces of the part that are not read
};

/// Bytes that a piece of the tensor may take. One that becomes tiles is cut between them, where
/// both of its layouts have the same offset; a norm is not cut.
int64_t MaxPieceBytes(const Placed& tensor) {
  if (IsNorm(tensor)) return tensor.loaded.num_bytes();
  if (!BecomesTiled(tensor)) return kPieceBytes;
  const int64_t tile_bytes = TileBytes(tensor.loaded.dtype, tensor.loaded.shape[1]);
  return std::max<int64_t>(1, kPieceBytes / tile_bytes) * tile_bytes;
}

void AppendPieces(const WeightPart& part, std::atomic<int64_t>& left, std::vector<Piece>& pieces) {
  const size_t before = pieces.size();
  for (const Placed& tensor : part.placed()) {
    const int64_t num_bytes = tensor.loaded.num_bytes();
    const int64_t max_bytes = MaxPieceBytes(tensor);
    for (int64_t offset = 0; offset < num_bytes; offset += max_bytes) {
      pieces.push_back(
          {&tensor, part.data(), false, offset, std::min(max_bytes, num_bytes - offset), &left});
    }
    if (tensor.scale_offset >= 0) {
      pieces.push_back({&tensor, part.data(), true, 0, tensor.scale_bytes, &left});
    }
  }
  left = static_cast<int64_t>(pieces.size() - before);
}

/// Where pieces are read before they are in their places: one a thread, each of which grows to the
/// largest piece's bytes, if it is used.
struct PieceBuffers {
  std::vector<std::byte> stored;  // what is stored otherwise than it is loaded
  std::vector<std::byte> loaded;  // what the host cannot write to its place
};

/// So many bytes of the buffer.
std::byte* Take(std::vector<std::byte>& buffer, int64_t bytes) {
  if (std::ssize(buffer) < bytes) buffer.resize(static_cast<size_t>(bytes));
  return buffer.data();
}

/// Reads a piece as it is loaded to `out`, in the host's memory.
absl::Status ReadLoaded(const TensorSource& source, const Piece& piece, PieceBuffers& buffers,
                        std::byte* out) {
  const Placed& tensor = *piece.tensor;
  const std::string name = piece.is_scale ? ScaleName(tensor.spec.name) : tensor.spec.name;
  const auto read = [&](std::byte* to, int64_t size) {
    return Annotate(
        source.ReadPart(name, piece.offset, absl::MakeSpan(to, static_cast<size_t>(size))), name);
  };
  if (piece.is_scale || !(IsNorm(tensor) || BecomesTiled(tensor))) return read(out, piece.size);

  const TensorInfo& stored = tensor.stored;
  // Less than `size` where a norm grows, and where the last tile is made whole.
  const int64_t stored_bytes = std::min(piece.size, stored.num_bytes() - piece.offset);
  std::byte* const scratch = Take(buffers.stored, stored_bytes);
  CARAVAN_RETURN_IF_ERROR(read(scratch, stored_bytes));
  if (IsNorm(tensor)) {
    DequantizeRow(stored.dtype, scratch, stored.num_elements(), reinterpret_cast<float*>(out));
  } else {
    const int64_t cols = stored.shape[1];
    TileMatrix(stored.dtype, stored_bytes / DTypeBytes(stored.dtype, cols), cols, scratch, out);
  }
  return absl::OkStatus();
}

/// Reads a piece to its place.
absl::Status ReadPiece(const TensorSource& source, const Piece& piece, Memory& memory,
                       PieceBuffers& buffers) {
  const Placed& tensor = *piece.tensor;
  std::byte* const out =
      piece.part + (piece.is_scale ? tensor.scale_offset : tensor.offset) + piece.offset;
  if (memory.is_host()) return ReadLoaded(source, piece, buffers, out);
  std::byte* const loaded = Take(buffers.loaded, piece.size);
  CARAVAN_RETURN_IF_ERROR(ReadLoaded(source, piece, buffers, loaded));
  return memory.CopyIn(loaded, piece.size, out);
}

/// Reads all pieces by a few threads, of which the caller's is one and the only one that calls
/// `progress`. After an error or a stop no further piece is begun.
///
/// What was read stays in the page cache: it is the first that the kernel takes when memory is
/// short, and the next plan's stage, or the worker beside this one, may want it.
absl::Status ReadPieces(const TensorSource& source, const std::vector<Piece>& pieces,
                        int64_t total_bytes, const LoadProgress& progress, Memory& memory) {
  std::atomic<size_t> next = 0;
  std::atomic<int64_t> read_bytes = 0;
  Mutex mu;
  absl::Status first_error;
  const auto fail = [&](const absl::Status& status) {
    next = pieces.size();
    MutexLock lock(&mu);
    first_error.Update(status);
  };
  const auto read_pieces = [&](bool reports) {
    PieceBuffers buffers;
    for (size_t i = next++; i < pieces.size(); i = next++) {
      if (reports && !progress(read_bytes, total_bytes)) {
        return fail(absl::CancelledError("loading was stopped"));
      }
      const absl::Status status = ReadPiece(source, pieces[i], memory, buffers);
      if (!status.ok()) return fail(status);
      read_bytes += pieces[i].size;
      --*pieces[i].left;
    }
  };
  std::vector<std::unique_ptr<NamedThread>> others;
  for (int i = 1; i < kReaders; ++i) {
    others.push_back(std::make_unique<NamedThread>("stage-reader", [&] { read_pieces(false); }));
  }
  read_pieces(true);
  others.clear();  // joins
  MutexLock lock(&mu);
  return first_error;
}

}  // namespace

WeightPart::WeightPart(std::vector<Placed> placed, Array array)
    : placed_(std::move(placed)), array_(std::move(array)) {
  for (const Placed& tensor : placed_) by_name_[tensor.spec.name] = &tensor;
}

Matrix WeightPart::MatrixOf(const std::string& name) const {
  const auto it = by_name_.find(name);
  if (it == by_name_.end()) return Matrix{};
  const Placed& tensor = *it->second;
  const float* scale = tensor.scale_offset < 0
                           ? nullptr
                           : reinterpret_cast<const float*>(data() + tensor.scale_offset);
  return Matrix{data() + tensor.offset,
                tensor.loaded.dtype,
                tensor.loaded.shape[0],
                tensor.loaded.shape[1],
                scale,
                tensor.loaded.layout};
}

const float* WeightPart::VectorOf(const std::string& name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr
                              : reinterpret_cast<const float*>(data() + it->second->offset);
}

std::vector<WeightPartId> PartsOf(const ModelConfig& config, const StageSpec& stage, bool experts) {
  using Kind = WeightPartId::Kind;
  std::vector<WeightPartId> ids;
  const bool embedding = stage.embeds || stage.drafts;
  if (embedding) ids.push_back({.kind = Kind::kEmbedding});
  for (int layer = stage.first_layer; layer < stage.end_layer; ++layer) {
    ids.push_back({.kind = Kind::kLayer, .layer = layer});
    if (experts && config.IsMoeLayer(layer))
      ids.push_back({.kind = Kind::kExperts, .layer = layer});
  }
  if (stage.drafts) ids.push_back({.kind = Kind::kMtp});
  if (stage.drafts && experts && config.IsMoeLayer(config.num_hidden_layers)) {
    ids.push_back({.kind = Kind::kMtpExperts});
  }
  if (stage.has_head) {
    const bool is_listed = embedding && config.tie_word_embeddings;
    ids.push_back({.kind = is_listed ? Kind::kFinalNorm : Kind::kHead});
  }
  return ids;
}

absl::Status LoadWeightParts(const ModelConfig& config, const std::vector<WeightPartId>& ids,
                             const TensorSource& source, WeightParts& held, Memory& memory,
                             const LoadProgress& progress, int64_t max_bytes) {
  struct Missing {
    WeightPartId id;
    std::vector<Placed> placed;
    int64_t bytes = 0;
  };
  std::vector<Missing> missing;
  int64_t total_bytes = 0;
  for (const WeightPartId& id : ids) {
    if (held.contains(id)) continue;
    Missing part;
    part.id = id;
    part.bytes = PlaceTensors(source, TensorsOf(config, id), part.placed);
    if (part.bytes > max_bytes - total_bytes) break;
    total_bytes += part.bytes;
    missing.push_back(std::move(part));
  }

  // On the host each has memory of its own, so that it can go alone. A card's come in large pages.
  Array whole;
  if (!memory.is_host()) {
    CARAVAN_ASSIGN_OR_RETURN(whole, memory.Allocate(total_bytes, Memory::Use::kWhole));
  }
  std::vector<std::shared_ptr<const WeightPart>> parts;  // as `missing`
  std::vector<std::atomic<int64_t>> left(missing.size());
  std::vector<Piece> pieces;
  int64_t offset = 0;
  for (Missing& part : missing) {
    Array array;
    if (memory.is_host()) {
      CARAVAN_ASSIGN_OR_RETURN(array, memory.Allocate(part.bytes, Memory::Use::kWhole));
    } else {
      array = Array(whole, whole.data() + offset, part.bytes);
      offset += part.bytes;
    }
    parts.push_back(std::make_shared<const WeightPart>(std::move(part.placed), array));
    AppendPieces(*parts.back(), left[parts.size() - 1], pieces);
  }
  absl::Status status = ReadPieces(source, pieces, total_bytes, progress, memory);
  // The others may have read all pieces but the caller's first before it came to ask.
  if (status.ok() && !progress(total_bytes, total_bytes)) {
    status = absl::CancelledError("loading was stopped");
  }
  for (size_t i = 0; i < missing.size(); ++i) {
    // A card's are of one array, which one of them would keep.
    if (status.ok() || (memory.is_host() && left[i] == 0)) held.emplace(missing[i].id, parts[i]);
  }
  return status;
}

}  // namespace caravan
