#ifndef CARAVAN_WORKER_KV_BLOCKS_SERVICE_H_
#define CARAVAN_WORKER_KV_BLOCKS_SERVICE_H_

// A worker's archive of KV blocks, served to other workers.

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "caravan/v1/kv_blocks.grpc.pb.h"
#include "worker/kv_block_store.h"

namespace caravan {

/// Thread-safe. A call holds one block in memory at a time.
class KvBlocksService final : public v1::KvBlocks::Service {
 public:
  /// `incarnation`: that calls must be meant for. `on_put`: a block was written, or could not be;
  /// called by the calls' threads without a lock, must not block.
  KvBlocksService(
      uint64_t incarnation, std::shared_ptr<KvBlockStore> store,
      std::function<void()> on_put = [] {})
      : incarnation_(incarnation), store_(std::move(store)), on_put_(std::move(on_put)) {}

  grpc::Status OfferKvBlocks(grpc::ServerContext* context, const v1::OfferKvBlocksRequest* request,
                             v1::OfferKvBlocksResponse* response) override;
  grpc::Status PutKvBlock(grpc::ServerContext* context, const v1::PutKvBlockRequest* request,
                          v1::PutKvBlockResponse* response) override;
  grpc::Status ListKvBlocks(grpc::ServerContext* context, const v1::ListKvBlocksRequest* request,
                            grpc::ServerWriter<v1::ListKvBlocksResponse>* writer) override;
  grpc::Status GetKvBlocks(grpc::ServerContext* context, const v1::GetKvBlocksRequest* request,
                           grpc::ServerWriter<v1::GetKvBlocksResponse>* writer) override;

 private:
  const uint64_t incarnation_;
  const std::shared_ptr<KvBlockStore> store_;
  const std::function<void()> on_put_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_BLOCKS_SERVICE_H_
