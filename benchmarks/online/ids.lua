-- Load for wrk: POST a template, each time with other ids.
-- wrk ... -- TEMPLATE COUNT FIRST LAST SEED; IDS in the template is replaced by the ids, without brackets, and
-- CONTEXT by one more id.
local bodies, at = {}, 0

function init(arguments)
  local template, count = arguments[1], tonumber(arguments[2])
  local first, last = tonumber(arguments[3]), tonumber(arguments[4])
  math.randomseed(tonumber(arguments[5]))
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  -- Generated in advance, so that wrk uses little CPU beside the server; enough of them to defeat caches.
  for number = 1, 2000 do
    local ids, seen = {}, {}
    while #ids < count do
      local id = math.random(first, last)
      if not seen[id] then
        seen[id] = true
        ids[#ids + 1] = id
      end
    end
    local body = template:gsub("IDS", table.concat(ids, ",")):gsub("CONTEXT", math.random(first, last))
    bodies[number] = wrk.format(nil, nil, nil, body)
  end
end

function request()
  at = at % #bodies + 1
  return bodies[at]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
