#ifndef CARAVAN_WORKER_KV_WIRE_H_
#define CARAVAN_WORKER_KV_WIRE_H_

// Parts of KV blocks in messages, and what is to be checked of those that come from elsewhere.

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "caravan/v1/kv_blocks.pb.h"
#include "worker/kv_peer.h"

namespace caravan {

v1::KvLayerRange ToProto(const LayerRange& layers);
/// Errors: InvalidArgument - none, or more than kMostKvLayers.
absl::StatusOr<LayerRange> LayersFromProto(const v1::KvLayerRange& layers);

v1::KvBlockPart ToProto(const KvBlockPart& part);
/// Errors: InvalidArgument - a name that is none, or as LayersFromProto.
absl::StatusOr<KvBlockPart> PartFromProto(const v1::KvBlockPart& part);

v1::KvBlockLayers ToProto(const KvFormat& format, const KvBlockPart& part,
                          absl::Span<const std::byte> layers);
/// The layers of a block, checked; they are the message's. Errors: InvalidArgument - as
/// PartFromProto, or bytes or hashes of another number; DataLoss - other bytes than were hashed.
absl::StatusOr<absl::Span<const std::byte>> CheckLayers(const KvFormat& format,
                                                        const v1::KvBlockLayers& block);

/// Whether layers of a part go into a message. Errors: InvalidArgument.
absl::Status CheckPartBytes(const KvFormat& format, const LayerRange& layers);

std::string JoinNames(absl::Span<const KvBlockName> names);
/// Errors: InvalidArgument - not whole names, or more than kMostKvParts.
absl::StatusOr<std::vector<KvBlockName>> SplitNames(absl::string_view bytes);

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_WIRE_H_
