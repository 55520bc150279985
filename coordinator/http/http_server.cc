#include "coordinator/http/http_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "cluster/address.h"
#include "coordinator/http/http_connection.h"
#include "coordinator/http/http_error.h"

namespace caravan {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;

// Open files that are not clients' connections: workers, the model, logs.
constexpr int64_t kOtherFiles = 256;

// After a failed accept (no file descriptor is left, mostly) others get a chance to end first.
constexpr auto kAcceptPause = std::chrono::milliseconds(100);

// Connections past the limit that are told so at the same time; more are just closed.
constexpr int64_t kMaxRefusals = 64;

int64_t RaiseFileLimit() {
  struct rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return INT64_MAX;
  const rlim_t before = limit.rlim_cur;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = before;
  if (limit.rlim_cur == RLIM_INFINITY) return INT64_MAX;
  return static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, INT64_MAX));
}

absl::StatusOr<tcp::endpoint> Resolve(const std::string& listen, bool loopback_only) {
  CARAVAN_RETURN_IF_ERROR(CheckAddress(listen, 0));
  const size_t colon = listen.rfind(':');
  std::string host = listen.substr(0, colon);
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  asio::io_context io;
  boost::system::error_code error;
  const auto found =
      tcp::resolver(io).resolve(host, listen.substr(colon + 1),
                                tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", listen, "\": the host is not known: ", error.message()));
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  if (loopback_only && !endpoint.address().is_loopback()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", listen, "\" can be reached from elsewhere, which needs API keys; ",
                     "without them the address must be loopback, such as 127.0.0.1"));
  }
  return endpoint;
}

class Server final : public HttpServer {
 public:
  Server(Options options, Router router)
      : options_(std::move(options)),
        router_(std::move(router)),
        access_(options_.keys),
        io_(options_.num_threads),
        acceptor_(asio::make_strand(io_)),
        accept_timer_(acceptor_.get_executor()) {
    context_.router = &router_;
    context_.access = &access_;
    context_.observer = options_.observer;
    context_.limits = options_.limits;
    context_.limits.max_connections = std::max<int64_t>(
        1, std::min(RaiseFileLimit() - kOtherFiles, options_.limits.max_connections));
    if (context_.limits.max_connections < options_.limits.max_connections) {
      LogWarning("http_connections_limited", {{"connections", context_.limits.max_connections},
                                              {"wanted", options_.limits.max_connections},
                                              {"why", "the hard limit of open files"}});
    }
  }

  ~Server() override { Stop(absl::ZeroDuration()); }

  absl::Status Listen() {
    CARAVAN_ASSIGN_OR_RETURN(const tcp::endpoint endpoint,
                             Resolve(options_.listen, !access_.has_keys()));
    boost::system::error_code error;
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", options_.listen, "\" cannot be listened on: ", error.message()));
    }
    const std::string host = options_.listen.substr(0, options_.listen.rfind(':'));
    address_ = absl::StrCat(host, ":", acceptor_.local_endpoint().port());
    asio::post(acceptor_.get_executor(), [this] { Accept(); });
    for (int i = 0; i < options_.num_threads; ++i) {
      threads_.push_back(
          std::make_unique<NamedThread>(absl::StrCat("http-", i), [this] { io_.run(); }));
    }
    return absl::OkStatus();
  }

  std::string address() const override { return address_; }

  void Stop(absl::Duration grace) override {
    context_.stopping = true;
    asio::post(acceptor_.get_executor(), [this] {
      boost::system::error_code ignored;
      acceptor_.close(ignored);
      accept_timer_.cancel();
    });
    StopConnections(false);
    if (!WaitUntilEmpty(grace)) StopConnections(true);
    WaitUntilEmpty(absl::InfiniteDuration());
    work_.reset();
    for (const std::unique_ptr<NamedThread>& thread : threads_) thread->Join();
  }

 private:
  struct Entry {
    std::shared_ptr<HttpConnection> connection;
    bool refused;  // it takes nobody's place
  };
  using Connections = absl::flat_hash_map<HttpConnection*, Entry>;

  void Accept() {
    if (!acceptor_.is_open()) return;
    acceptor_.async_accept(asio::make_strand(io_), [this](const boost::system::error_code& error,
                                                          HttpConnection::Socket socket) {
      if (!acceptor_.is_open()) return;
      if (error) {
        accept_timer_.expires_after(kAcceptPause);
        accept_timer_.async_wait([this](const boost::system::error_code&) { Accept(); });
        return;
      }
      TakeIn(std::move(socket));
      Accept();
    });
  }

  void TakeIn(HttpConnection::Socket socket) {
    boost::system::error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);  // a token should not wait for the next one
    socket.set_option(asio::socket_base::keep_alive(true), ignored);
    std::shared_ptr<HttpConnection> connection;
    bool refused = false;
    {
      MutexLock lock(&mu_);
      if (context_.stopping || num_refused_ >= kMaxRefusals) return;  // closes it
      refused = static_cast<int64_t>(connections_.size()) - num_refused_ >=
                context_.limits.max_connections;
      if (refused) ++num_refused_;
      auto on_closed = std::make_shared<HttpConnection*>();
      connection = std::make_shared<HttpConnection>(std::move(socket), &context_,
                                                    [this, on_closed] { Forget(*on_closed); });
      *on_closed = connection.get();
      connections_.emplace(connection.get(), Entry{connection, refused});
    }
    if (context_.observer != nullptr) context_.observer->OnConnectionOpened();
    if (refused) {
      connection->StartRefused(
          ErrorResponse(503, "too many connections are open", "too_many_connections"));
    } else {
      connection->Start();
    }
  }

  void Forget(HttpConnection* connection) {
    if (context_.observer != nullptr) context_.observer->OnConnectionClosed();
    MutexLock lock(&mu_);
    const auto it = connections_.find(connection);
    if (it->second.refused) --num_refused_;
    connections_.erase(it);
    changed_.SignalAll();
  }

  void StopConnections(bool now) {
    std::vector<std::shared_ptr<HttpConnection>> connections;
    {
      MutexLock lock(&mu_);
      for (const auto& [ignored, entry] : connections_) connections.push_back(entry.connection);
    }
    for (const std::shared_ptr<HttpConnection>& connection : connections) connection->Stop(now);
  }

  /// Whether the last connection closed within `timeout`.
  bool WaitUntilEmpty(absl::Duration timeout) {
    const absl::Duration deadline = SteadyClock().Now() + timeout;
    MutexLock lock(&mu_);
    while (!connections_.empty()) {
      const absl::Duration left = deadline - SteadyClock().Now();
      if (left <= absl::ZeroDuration()) return false;
      changed_.WaitWithTimeout(&mu_, left);
    }
    return true;
  }

  const Options options_;
  const Router router_;
  const AccessPolicy access_;
  HttpConnectionContext context_;
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  tcp::acceptor acceptor_;
  asio::steady_timer accept_timer_;
  std::string address_;

  Mutex mu_;
  CondVar changed_;
  Connections connections_ ABSL_GUARDED_BY(mu_);
  int64_t num_refused_ ABSL_GUARDED_BY(mu_) = 0;  // of connections_

  std::vector<std::unique_ptr<NamedThread>> threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(Options options, Router router) {
  auto server = std::make_unique<Server>(std::move(options), std::move(router));
  CARAVAN_RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace caravan
