#include "worker/kv_blocks_service.h"

#include <grpcpp/grpcpp.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cluster/grpc_status.h"
#include "worker/kv_wire.h"

namespace caravan {
namespace {

// What a message of a list has at most: some 120 KiB.
constexpr int kListedPiece = 4096;

/// Of any request. Errors: as the service says.
absl::StatusOr<KvFormat> CheckRequest(uint64_t incarnation, uint64_t expected,
                                      const std::string& format) {
  if (incarnation != expected) {
    return absl::AbortedError("this worker has restarted since the plan was made");
  }
  const std::optional<KvFormat> parsed = ParseKvFormat(format);
  if (!parsed.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("format: none of KV blocks, of ", format.size(), " bytes"));
  }
  return *parsed;
}

absl::Status Offer(KvBlockStore& store, uint64_t incarnation,
                   const v1::OfferKvBlocksRequest& request, v1::OfferKvBlocksResponse& response) {
  CARAVAN_ASSIGN_OR_RETURN(const KvFormat format,
                           CheckRequest(request.incarnation(), incarnation, request.format()));
  CARAVAN_ASSIGN_OR_RETURN(const LayerRange layers, LayersFromProto(request.layers()));
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<KvBlockName> names, SplitNames(request.names()));
  std::vector<KvBlockName> lacking;
  for (const KvBlockName& name : names) {
    if (!store.Use(format, {name, layers}).empty()) lacking.push_back(name);
  }
  response.set_lacking(JoinNames(lacking));
  return absl::OkStatus();
}

absl::Status Put(KvBlockStore& store, uint64_t incarnation, const v1::PutKvBlockRequest& request) {
  CARAVAN_ASSIGN_OR_RETURN(const KvFormat format,
                           CheckRequest(request.incarnation(), incarnation, request.format()));
  CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const std::byte> layers,
                           CheckLayers(format, request.block()));
  CARAVAN_ASSIGN_OR_RETURN(const KvBlockPart part, PartFromProto(request.block().part()));
  return store.Write(format, part, layers);
}

absl::Status List(const KvBlockStore& store, uint64_t incarnation,
                  const v1::ListKvBlocksRequest& request,
                  grpc::ServerWriter<v1::ListKvBlocksResponse>& writer) {
  CARAVAN_ASSIGN_OR_RETURN(const KvFormat format,
                           CheckRequest(request.incarnation(), incarnation, request.format()));
  CARAVAN_ASSIGN_OR_RETURN(const LayerRange layers, LayersFromProto(request.layers()));
  v1::ListKvBlocksResponse piece;
  for (const ListedKvPart& each : store.List(format, layers, kMostArchivedNames)) {
    v1::ListedKvBlock& listed = *piece.add_blocks();
    *listed.mutable_part() = ToProto(each.part);
    listed.set_unused_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(each.unused)));
    if (piece.blocks_size() < kListedPiece) continue;
    if (!writer.Write(piece)) return absl::OkStatus();  // the caller went away
    piece.Clear();
  }
  if (piece.blocks_size() > 0) writer.Write(piece);
  return absl::OkStatus();
}

absl::Status Get(KvBlockStore& store, uint64_t incarnation, const v1::GetKvBlocksRequest& request,
                 grpc::ServerWriter<v1::GetKvBlocksResponse>& writer) {
  CARAVAN_ASSIGN_OR_RETURN(const KvFormat format,
                           CheckRequest(request.incarnation(), incarnation, request.format()));
  if (request.parts_size() > static_cast<int>(kMostKvParts)) {
    return absl::InvalidArgumentError(
        absl::StrCat("parts: ", request.parts_size(), "; at most ", kMostKvParts));
  }
  std::vector<std::byte> layers;
  for (const v1::KvBlockPart& wanted : request.parts()) {
    CARAVAN_ASSIGN_OR_RETURN(const KvBlockPart part, PartFromProto(wanted));
    CARAVAN_RETURN_IF_ERROR(CheckPartBytes(format, part.layers));
    const absl::Status read = store.ReadWhole(format, part, layers);
    if (absl::IsNotFound(read)) continue;
    CARAVAN_RETURN_IF_ERROR(read);
    v1::GetKvBlocksResponse response;
    *response.mutable_block() = ToProto(format, part, layers);
    if (!writer.Write(response, grpc::WriteOptions().set_no_compression())) break;
  }
  return absl::OkStatus();
}

}  // namespace

grpc::Status KvBlocksService::OfferKvBlocks(grpc::ServerContext* /*context*/,
                                            const v1::OfferKvBlocksRequest* request,
                                            v1::OfferKvBlocksResponse* response) {
  return ToGrpcStatus(Offer(*store_, incarnation_, *request, *response));
}

grpc::Status KvBlocksService::PutKvBlock(grpc::ServerContext* /*context*/,
                                         const v1::PutKvBlockRequest* request,
                                         v1::PutKvBlockResponse* /*response*/) {
  const absl::Status put = Put(*store_, incarnation_, *request);
  on_put_();
  return ToGrpcStatus(put);
}

grpc::Status KvBlocksService::ListKvBlocks(grpc::ServerContext* /*context*/,
                                           const v1::ListKvBlocksRequest* request,
                                           grpc::ServerWriter<v1::ListKvBlocksResponse>* writer) {
  return ToGrpcStatus(List(*store_, incarnation_, *request, *writer));
}

grpc::Status KvBlocksService::GetKvBlocks(grpc::ServerContext* /*context*/,
                                          const v1::GetKvBlocksRequest* request,
                                          grpc::ServerWriter<v1::GetKvBlocksResponse>* writer) {
  return ToGrpcStatus(Get(*store_, incarnation_, *request, *writer));
}

}  // namespace caravan
